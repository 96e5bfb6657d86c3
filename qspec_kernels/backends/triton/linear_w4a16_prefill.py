"""Linear with int4 weights in the prefill phase: x rounded to bfloat16, sums in float32."""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton._prefill_launch import prefilled
from qspec_kernels.backends.triton._prefill_variants import packed_variants
from qspec_kernels.backends.triton._variants import Variant

READS = "int4_mma16"


def linear_w4a16_prefill(
    x: Tensor, data: Tensor, scales: Tensor, bias: Tensor | None, residual: Tensor | None, n: int, k: int,
    group_size: int,
) -> Tensor:  # fmt: skip
    """x [M, k], data and scales ordered as READS -> [M, n] in x's dtype."""
    return prefilled(x, None, (data, scales), bias, residual, (n, k), group_size, mxfp4=False)


def variants(arch: int) -> Iterator[Variant]:
    """What is compiled for an architecture."""
    yield from packed_variants("linear_w4a16_prefill", arch, mxfp4=False)
