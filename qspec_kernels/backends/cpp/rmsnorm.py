"""Launcher of rmsnorm.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [M, W] float32 or bfloat16, weight [W] -> x * rsqrt(mean(x^2) + eps) * weight in x's dtype."""
    m, width = x.shape
    weight = weight.float()
    out = torch.empty_like(x)
    kernel = library.function("rmsnorm", "pplpflll")
    library.check(
        kernel(
            out.data_ptr(),
            x.data_ptr(),
            x.dtype == torch.bfloat16,
            weight.data_ptr(),
            eps,
            m,
            width,
            torch.get_num_threads(),
        )
    )
    return out
