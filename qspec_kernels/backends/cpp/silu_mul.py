"""Launcher of silu_mul.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def silu_mul(x: Tensor) -> Tensor:
    """x [M, 2 F] float32 or bfloat16, gate beside up -> silu(gate) * up, [M, F] in x's dtype."""
    m, width = x.shape[0], x.shape[1] // 2
    out = empty((m, width), x.dtype)
    call("silu_mul", out, x, x.dtype == torch.bfloat16, m, width, num_threads())
    return out
