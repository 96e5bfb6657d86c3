"""Launcher of rmsnorm.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [M, W] float32 or bfloat16, weight [W] -> x * rsqrt(mean(x^2) + eps) * weight in x's dtype."""
    m, width = x.shape
    out = empty((m, width), x.dtype)
    call(
        "rmsnorm",
        out,
        x,
        x.dtype == torch.bfloat16,
        weight.float(),
        float(eps),
        m,
        width,
        num_threads(),
    )
    return out
