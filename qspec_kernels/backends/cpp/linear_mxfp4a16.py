"""Launcher of linear_mxfp4a16.cpp."""

from torch import Tensor

from qspec_kernels.backends.cpp._float import float_linear

READS = "mxfp4_tiles16"


def linear_mxfp4a16(
    x: Tensor, data: Tensor, scales: Tensor, bias: Tensor | None, residual: Tensor | None, n: int, k: int,
    group_size: int,
) -> Tensor:  # fmt: skip
    """x [M, K] float32 or bfloat16, data and scales as READS orders them -> [M, N] in x's dtype."""
    return float_linear("linear_mxfp4a16", x, (data, scales), bias, residual, (n, k), group_size)
