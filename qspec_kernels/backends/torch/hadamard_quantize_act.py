"""Rotation, then quantisation."""

from torch import Tensor

from qspec_kernels.backends.torch.hadamard import hadamard
from qspec_kernels.backends.torch.quantize_act import quantize_act


def hadamard_quantize_act(
    x: Tensor, base: Tensor, block: int, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, K] -> codes int8 [M, K], scales [M, groups] of x rotated in blocks of width `block`."""
    rotated = hadamard(x.view(-1, block), base, False, None)
    return quantize_act(rotated.view(x.shape), bits, group_size, clip)
