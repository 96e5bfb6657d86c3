"""Launcher of silu_mul.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def silu_mul(x: Tensor) -> Tensor:
    """x [M, 2F] -> silu(x[:, :F]) * x[:, F:] in x's dtype."""
    m, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(m, width, dtype=x.dtype)
    kernel = library.function("silu_mul", "ppllll")
    library.check(
        kernel(out.data_ptr(), x.data_ptr(), x.dtype == torch.bfloat16, m, width, torch.get_num_threads())
    )
    return out
