"""Launcher of hadamard.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def hadamard(x: Tensor, base: Tensor, transpose: bool) -> Tensor:
    """x [M, W], base int8 +-1 [m, m] with W = m * 2^p -> kron(base, Sylvester) x / sqrt(W) in x's dtype."""
    rows, width = x.shape
    out = torch.empty_like(x)
    kernel = library.function("hadamard", "pplplllll")
    library.check(
        kernel(
            out.data_ptr(),
            x.data_ptr(),
            x.dtype == torch.bfloat16,
            base.data_ptr(),
            base.shape[0],
            transpose,
            rows,
            width,
            torch.get_num_threads(),
        )
    )
    return out
