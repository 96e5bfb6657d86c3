"""Linear with int4 weights and 4-bit integer activations."""

from torch import Tensor

from qspec_kernels.backends.torch._linear import integer, plus
from qspec_kernels.backends.torch._weights import int4_rows

READS = "int4"


def linear_w4a4(
    codes: Tensor,
    act_scales: Tensor,
    data: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    n: int,
    k: int,
    group_size: int,
) -> Tensor:
    """codes int8 [M, k], act_scales [M, A], the bytes of a weight [n, k] -> [M, n] in the scales' dtype."""
    rows = int4_rows(data, scales, k, group_size, act_scales.dtype)
    return plus(residual, integer(codes, act_scales, rows, bias, n, group_size))
