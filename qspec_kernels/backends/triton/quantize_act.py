"""Activations to integers, per token or per token and group."""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton._quantize import quantize_rows, quantize_variant
from qspec_kernels.backends.triton._rows import BF16, F32
from qspec_kernels.backends.triton._variants import Variant


def quantize_act(x: Tensor, bits: int, group_size: int, clip: float) -> tuple[Tensor, Tensor]:
    """x [M, K] -> codes int8 [M, K], scales float32 [M, groups]."""
    return quantize_rows("", x, None, 0.0, bits, group_size, clip)


def variants(arch: int) -> Iterator[Variant]:
    """Per token and per group, for widths of Llama 3 8B and Qwen 2.5 7B."""
    del arch
    for dtype, k, bits, group in (
        (F32, 4096, 8, 4096), (F32, 4096, 4, 128), (F32, 3584, 4, 128), (F32, 14336, 8, 14336),
        (F32, 18944, 8, 18944), (BF16, 4096, 8, 4096), (BF16, 4096, 4, 128),
    ):  # fmt: skip
        yield quantize_variant("", dtype, k, bits, group)
