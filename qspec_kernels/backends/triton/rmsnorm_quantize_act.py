"""Root mean square normalisation, then quantisation, in one pass."""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton._quantize import quantize_rows, quantize_variant
from qspec_kernels.backends.triton._rows import BF16, F32
from qspec_kernels.backends.triton._variants import Variant


def rmsnorm_quantize_act(
    x: Tensor, weight: Tensor, eps: float, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, K], weight float32 [K] -> codes int8 [M, K], scales float32 [M, groups]."""
    return quantize_rows("rmsnorm", x, weight, eps, bits, group_size, clip)


def variants(arch: int) -> Iterator[Variant]:
    """Hidden sizes of Llama 3 8B and 70B and of Qwen 2.5 7B."""
    del arch
    for dtype, k, bits, group in (
        (F32, 3584, 8, 3584), (F32, 4096, 8, 4096), (F32, 4096, 4, 128), (F32, 8192, 8, 8192),
        (BF16, 4096, 8, 4096), (BF16, 4096, 4, 128),
    ):  # fmt: skip
        yield quantize_variant("rmsnorm", dtype, k, bits, group)
