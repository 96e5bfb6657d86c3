"""Launcher of linear_bf16.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def linear_bf16(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [M, K] float32 or bfloat16, weight [N, K] bfloat16, bias [N], residual [M, N] -> [M, N] as x."""
    (m, k), n = x.shape, weight.shape[0]
    out = empty((m, n), x.dtype)
    call(
        "linear_bf16",
        out,
        x,
        x.dtype == torch.bfloat16,
        weight,
        None if bias is None else bias.float(),
        residual,
        m,
        n,
        k,
        num_threads(),
    )
    return out
