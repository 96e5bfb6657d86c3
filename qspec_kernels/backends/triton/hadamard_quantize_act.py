"""Rotation, then quantisation, in one launch where a row is one rotation that one program holds."""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton._hadamard_quantize import rotate_quantize, rotate_quantize_variant
from qspec_kernels.backends.triton._rows import BF16, F32
from qspec_kernels.backends.triton._variants import Variant


def hadamard_quantize_act(
    x: Tensor, base: Tensor, block: int, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, K] -> codes int8 [M, K], scales [M, groups] of x rotated in blocks of width `block`."""
    return rotate_quantize("", x, base, None, block, bits, group_size, clip)


def variants(arch: int) -> Iterator[Variant]:
    """Head and intermediate sizes of Llama models, whole rows and groups."""
    for dtype, k, m, bits, group in (
        (F32, 4096, 1, 8, 4096), (F32, 8192, 1, 8, 8192), (F32, 11008, 344, 8, 11008),
        (F32, 14336, 28, 8, 14336), (F32, 14336, 28, 4, 128), (BF16, 4096, 1, 8, 4096),
        (BF16, 14336, 28, 4, 128),
    ):  # fmt: skip
        yield rotate_quantize_variant("", arch, dtype, (k, m), bits, group)
