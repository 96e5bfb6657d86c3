"""Linear with MXFP4 weights and 8-bit integer activations in the prefill phase, on 8-bit matrix units."""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton._prefill_launch import no_wide_integers, prefilled
from qspec_kernels.backends.triton._prefill_variants import packed_variants
from qspec_kernels.backends.triton._variants import Variant

READS = "mxfp4_mma16"
why_not = no_wide_integers


def linear_mxfp4a8_prefill(
    codes: Tensor, act_scales: Tensor, data: Tensor, scales: Tensor, bias: Tensor | None,
    residual: Tensor | None, n: int, k: int, group_size: int,
) -> Tensor:  # fmt: skip
    """codes int8 [M, k], act_scales float32 [M, A], data and scales ordered as READS -> float32 [M, n]."""
    return prefilled(codes, act_scales, (data, scales), bias, residual, (n, k), group_size, mxfp4=True)


def variants(arch: int) -> Iterator[Variant]:
    """What is compiled for an architecture."""
    yield from packed_variants("linear_mxfp4a8_prefill", arch, mxfp4=True, act=8)
