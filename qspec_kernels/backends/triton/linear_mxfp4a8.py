"""Linear with MXFP4 weights and 8-bit integer activations, on 8-bit matrix units.

A weight counts as twice its value, an exact integer, so that sums agree bit for bit with other backends. The
matrix units for MX formats, and `tl.dot_scaled`, multiply floats, which 8-bit integers do not fit into.
"""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton import _launch
from qspec_kernels.backends.triton._linear_variants import packed_variants
from qspec_kernels.backends.triton._variants import Variant

READS = "mxfp4_mma16"


def linear_mxfp4a8(
    codes: Tensor, act_scales: Tensor, data: Tensor, scales: Tensor, bias: Tensor | None,
    residual: Tensor | None, n: int, k: int, group_size: int,
) -> Tensor:  # fmt: skip
    """codes int8 [M, k], act_scales float32 [M, A], data and scales ordered as READS -> float32 [M, n]."""
    return _launch.packed(codes, act_scales, (data, scales), bias, residual, (n, k), group_size, mxfp4=True)


def variants(arch: int) -> Iterator[Variant]:
    """What is compiled for an architecture."""
    yield from packed_variants("linear_mxfp4a8", arch, mxfp4=True, act=8)
