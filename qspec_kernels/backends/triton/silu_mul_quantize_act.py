"""The gate of a gated feed-forward layer, then quantisation, in one pass."""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton._quantize import quantize_rows, quantize_variant
from qspec_kernels.backends.triton._rows import BF16, F32
from qspec_kernels.backends.triton._variants import Variant


def silu_mul_quantize_act(x: Tensor, bits: int, group_size: int, clip: float) -> tuple[Tensor, Tensor]:
    """x [M, 2 F], gate beside up -> codes int8 [M, F], scales float32 [M, groups]."""
    return quantize_rows("silu_mul", x, None, 0.0, bits, group_size, clip)


def variants(arch: int) -> Iterator[Variant]:
    """Intermediate sizes of Llama 3 8B and Qwen 2.5 7B."""
    del arch
    for dtype, k, bits, group in (
        (F32, 14336, 8, 14336), (F32, 14336, 4, 128), (F32, 18944, 8, 18944), (BF16, 14336, 8, 14336),
    ):  # fmt: skip
        yield quantize_variant("silu_mul", dtype, k, bits, group)
