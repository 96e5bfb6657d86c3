"""The gate of a gated feed-forward layer, then quantisation."""

from torch import Tensor

from qspec_kernels.backends.torch.quantize_act import quantize_act
from qspec_kernels.backends.torch.silu_mul import silu_mul


def silu_mul_quantize_act(x: Tensor, bits: int, group_size: int, clip: float) -> tuple[Tensor, Tensor]:
    """x [M, 2 F], gate beside up -> codes int8 [M, F], scales [M, groups]."""
    return quantize_act(silu_mul(x), bits, group_size, clip)
