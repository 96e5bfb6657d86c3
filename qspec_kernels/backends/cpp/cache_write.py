"""Launcher of cache_write.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, num_threads


def cache_write(
    k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor
) -> None:
    """k, v [T, H, D] into caches [B, H, C, D] at (rows[t], positions[t]), int32 [T], in place."""
    batch, heads, capacity, dim = k_cache.shape
    call(
        "cache_write",
        k_cache,
        v_cache,
        k_cache.dtype == torch.bfloat16,
        k,
        v,
        k.dtype == torch.bfloat16,
        rows,
        positions,
        k.shape[0],
        batch,
        heads,
        capacity,
        dim,
        num_threads(),
    )
