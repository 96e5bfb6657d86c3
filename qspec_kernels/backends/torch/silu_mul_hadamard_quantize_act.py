"""The gate of a gated feed-forward layer, then rotation, then quantisation."""

from torch import Tensor

from qspec_kernels.backends.torch.hadamard import hadamard
from qspec_kernels.backends.torch.quantize_act import quantize_act
from qspec_kernels.backends.torch.silu_mul import silu_mul


def silu_mul_hadamard_quantize_act(
    x: Tensor, base: Tensor, diagonal: Tensor | None, block: int, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, 2 F], gate beside up -> codes int8 [M, F], scales [M, groups] of blocks that were rotated."""
    gated = silu_mul(x)
    rotated = hadamard(gated.view(-1, block), base, False, diagonal)
    return quantize_act(rotated.view(gated.shape), bits, group_size, clip)
