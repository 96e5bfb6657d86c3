"""Linear with a bfloat16 weight: x rounded to bfloat16, products (exact in float32) summed in float32."""

from torch import Tensor

from qspec_kernels.backends.torch._linear import plus
from qspec_kernels.backends.torch._matmul import blocked_matmul


def linear_bf16(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [M, K], weight bfloat16 [N, K], bias float32 [N] -> [M, N] in x's dtype."""
    out = blocked_matmul(
        x.bfloat16().float(), weight.shape[0], lambda start, stop: weight[start:stop].float(), bias
    )
    return plus(residual, out.to(x.dtype))
