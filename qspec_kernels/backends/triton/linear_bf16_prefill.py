"""Linear with a bfloat16 weight in the prefill phase: x rounded to bfloat16, products summed in float32."""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton._prefill_dense import dense
from qspec_kernels.backends.triton._prefill_variants import dense_variants
from qspec_kernels.backends.triton._variants import Variant


def linear_bf16_prefill(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [M, K], weight bfloat16 [N, K], bias float32 [N] -> [M, N] in x's dtype."""
    return dense(x, weight, bias, residual)


def variants(arch: int) -> Iterator[Variant]:
    """What is compiled for an architecture."""
    yield from dense_variants("linear_bf16_prefill", arch)
