"""Linear with int4 weights and 4-bit integer activations in the prefill phase, on 8-bit matrix units."""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton._prefill_launch import no_wide_integers, prefilled
from qspec_kernels.backends.triton._prefill_variants import packed_variants
from qspec_kernels.backends.triton._variants import Variant

READS = "int4_mma16"
why_not = no_wide_integers


def linear_w4a4_prefill(
    codes: Tensor, act_scales: Tensor, data: Tensor, scales: Tensor, bias: Tensor | None,
    residual: Tensor | None, n: int, k: int, group_size: int,
) -> Tensor:  # fmt: skip
    """codes int8 [M, k], act_scales float32 [M, A], data and scales ordered as READS -> float32 [M, n]."""
    return prefilled(codes, act_scales, (data, scales), bias, residual, (n, k), group_size, mxfp4=False)


def variants(arch: int) -> Iterator[Variant]:
    """What is compiled for an architecture."""
    yield from packed_variants("linear_w4a4_prefill", arch, mxfp4=False, act=4)
