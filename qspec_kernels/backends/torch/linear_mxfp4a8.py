"""Linear with MXFP4 weights and 8-bit integer activations."""

from torch import Tensor

from qspec_kernels.backends.torch._linear import integer_linear, plus
from qspec_kernels.backends.torch._weights import mxfp4_rows

READS = "mxfp4"


def linear_mxfp4a8(
    codes: Tensor, act_scales: Tensor, data: Tensor, scales: Tensor, bias: Tensor | None,
    residual: Tensor | None, n: int, k: int, group_size: int,
) -> Tensor:  # fmt: skip
    """codes int8 [M, k], act_scales [M, A], the bytes of a weight [n, k] -> [M, n] in the scales' dtype."""
    return plus(
        residual, integer_linear(mxfp4_rows, codes, act_scales, (data, scales), bias, (n, k), group_size)
    )
