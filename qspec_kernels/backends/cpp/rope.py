"""Launcher of rope.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor, scaling: float) -> Tensor:
    """x [T, H, D], heads of a token contiguous; positions int32 [T], inv_freq float32 [D/2] -> [T, H, D]."""
    tokens, heads, dim = x.shape
    out = torch.empty(tokens, heads, dim, dtype=x.dtype)
    kernel = library.function("rope", "pplppflllll")
    library.check(
        kernel(
            out.data_ptr(),
            x.data_ptr(),
            x.dtype == torch.bfloat16,
            positions.data_ptr(),
            inv_freq.data_ptr(),
            scaling,
            tokens,
            heads,
            dim,
            x.stride(0),
            torch.get_num_threads(),
        )
    )
    return out
