"""Launcher of linear_w4a4.cpp."""

from torch import Tensor

from qspec_kernels.backends.cpp._integer import integer_linear

READS = "int4_tiles16"


def linear_w4a4(
    codes: Tensor, act_scales: Tensor, data: Tensor, scales: Tensor, bias: Tensor | None,
    residual: Tensor | None, n: int, k: int, group_size: int,
) -> Tensor:  # fmt: skip
    """codes int8 [M, K], act_scales float32 [M, A], data and scales ordered as READS -> float32 [M, N]."""
    return integer_linear(
        "linear_w4a4", codes, act_scales, (data, scales), bias, residual, (n, k), group_size
    )
