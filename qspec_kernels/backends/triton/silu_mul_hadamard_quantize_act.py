"""The gate of a gated feed-forward layer, then rotation and quantisation, in one launch where a row fits."""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton._hadamard_quantize import rotate_quantize, rotate_quantize_variant
from qspec_kernels.backends.triton._rows import BF16, F32
from qspec_kernels.backends.triton._variants import Variant


def silu_mul_hadamard_quantize_act(
    x: Tensor, base: Tensor, diagonal: Tensor | None, block: int, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, 2 F], gate beside up -> codes int8 [M, F], scales [M, groups] of blocks that were rotated.

    base int8 [m, m] with block = m * 2^p; diagonal float32 [F] or None.
    """
    return rotate_quantize("silu_mul", x, base, diagonal, block, bits, group_size, clip)


def variants(arch: int) -> Iterator[Variant]:
    """Intermediate sizes of Llama models, whole rows and groups."""
    for dtype, f, m, bits, group, scaled in (
        (F32, 8192, 1, 8, 8192, False), (F32, 8192, 1, 8, 8192, True), (F32, 11008, 344, 8, 11008, False),
        (F32, 14336, 28, 8, 14336, False), (F32, 14336, 28, 4, 128, False), (BF16, 8192, 1, 8, 8192, False),
        (BF16, 11008, 344, 4, 128, True), (BF16, 14336, 28, 8, 14336, False),
        (BF16, 14336, 28, 4, 128, False),
    ):  # fmt: skip
        yield rotate_quantize_variant("silu_mul", arch, dtype, (f, m), bits, group, scaled)
