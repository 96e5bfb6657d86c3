"""Linear with MXFP4 weights and 16-bit activations: x rounded to bfloat16, sums in float32.

`tl.dot_scaled` is no help: with 16-bit activations it makes bfloat16 of weights on every architecture, and
puts scales into the operand, where the largest of them overflow and the smallest vanish.
"""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton import _launch
from qspec_kernels.backends.triton._linear_variants import packed_variants
from qspec_kernels.backends.triton._variants import Variant

READS = "mxfp4_mma16"


def linear_mxfp4a16(
    x: Tensor, data: Tensor, scales: Tensor, bias: Tensor | None, residual: Tensor | None, n: int, k: int,
    group_size: int,
) -> Tensor:  # fmt: skip
    """x [M, k], data and scales ordered as READS -> [M, n] in x's dtype."""
    return _launch.packed(x, None, (data, scales), bias, residual, (n, k), group_size, mxfp4=True)


def variants(arch: int) -> Iterator[Variant]:
    """What is compiled for an architecture."""
    yield from packed_variants("linear_mxfp4a16", arch, mxfp4=True)
