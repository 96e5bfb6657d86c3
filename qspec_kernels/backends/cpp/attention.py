"""Launcher of attention.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor, positions: Tensor, scale: float, window: int
) -> Tensor:
    """q [T, Hq, D], caches [B, Hkv, C, D], rows and positions int32 [T], window -1 for none -> [T, Hq, D]."""
    tokens, heads, dim = q.shape
    batch, kv_heads, capacity, _ = k_cache.shape
    out = empty((tokens, heads, dim), q.dtype)
    call(
        "attention",
        out,
        q,
        q.dtype == torch.bfloat16,
        k_cache,
        v_cache,
        k_cache.dtype == torch.bfloat16,
        rows,
        positions,
        float(scale),
        window,
        tokens,
        batch,
        heads,
        kv_heads,
        capacity,
        dim,
        num_threads(),
    )
    return out
