"""Launcher of rope_cache_write.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def rope_cache_write(
    x: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor, positions: Tensor, inv_freq: Tensor,
    scaling: float, q_gain: Tensor | None, k_gain: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    """x [T, (Hq + 2 Hkv) * D], caches [B, Hkv, C, D], rows and positions int32 [T] -> queries [T, Hq, D]."""
    batch, heads, capacity, dim = k_cache.shape
    tokens, width = x.shape
    q_heads = width // dim - 2 * heads
    out = empty((tokens, q_heads, dim), x.dtype)
    call(
        "rope_cache_write",
        out,
        k_cache,
        v_cache,
        k_cache.dtype == torch.bfloat16,
        x,
        x.dtype == torch.bfloat16,
        rows,
        positions,
        inv_freq,
        float(scaling),
        None if q_gain is None else q_gain.float(),
        None if k_gain is None else k_gain.float(),
        float(eps),
        tokens,
        batch,
        q_heads,
        heads,
        capacity,
        dim,
        num_threads(),
    )
    return out
