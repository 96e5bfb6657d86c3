"""Launcher of attention.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor, positions: Tensor, scale: float, window: int
) -> Tensor:
    """q [T, Hq, D], caches [B, Hkv, C, D], rows and positions int32 [T], window -1 for none -> [T, Hq, D]."""
    tokens, heads, dim = q.shape
    _, kv_heads, capacity, _ = k_cache.shape
    out = torch.empty(tokens, heads, dim, dtype=q.dtype)
    kernel = library.function("attention", "pplpplppfllllllll")
    library.check(
        kernel(
            out.data_ptr(),
            q.data_ptr(),
            q.dtype == torch.bfloat16,
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            k_cache.dtype == torch.bfloat16,
            rows.data_ptr(),
            positions.data_ptr(),
            scale,
            window,
            tokens,
            heads,
            kv_heads,
            capacity,
            dim,
            q.stride(0),
            torch.get_num_threads(),
        )
    )
    return out
