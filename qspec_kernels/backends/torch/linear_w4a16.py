"""Linear with int4 weights and 16-bit activations: x rounded to bfloat16, sums in float32."""

from torch import Tensor

from qspec_kernels.backends.torch._linear import float_linear, plus
from qspec_kernels.backends.torch._weights import int4_rows

READS = "int4"


def linear_w4a16(
    x: Tensor, data: Tensor, scales: Tensor, bias: Tensor | None, residual: Tensor | None, n: int, k: int,
    group_size: int,
) -> Tensor:  # fmt: skip
    """x [M, k], the bytes of a weight [n, k] -> [M, n] in x's dtype; float64 x is not rounded."""
    return plus(residual, float_linear(int4_rows, x, (data, scales), bias, (n, k), group_size))
