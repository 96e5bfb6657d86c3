"""Launcher of cache_write.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def cache_write(
    k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor
) -> None:
    """k, v [T, H, D] into caches [B, H, C, D] at (rows[t], :, positions[t]); rows, positions int32 [T]."""
    _, heads, capacity, dim = k_cache.shape
    kernel = library.function("cache_write", "pplpplpplllllll")
    library.check(
        kernel(
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            k_cache.dtype == torch.bfloat16,
            k.data_ptr(),
            v.data_ptr(),
            k.dtype == torch.bfloat16,
            rows.data_ptr(),
            positions.data_ptr(),
            k.shape[0],
            heads,
            capacity,
            dim,
            k.stride(0),
            v.stride(0),
            torch.get_num_threads(),
        )
    )
