"""Root mean square normalisation, then quantisation."""

from torch import Tensor

from qspec_kernels.backends.torch.quantize_act import quantize_act
from qspec_kernels.backends.torch.rmsnorm import rmsnorm


def rmsnorm_quantize_act(
    x: Tensor, weight: Tensor, eps: float, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, K], weight [K] -> codes int8 [M, K], scales [M, groups]."""
    return quantize_act(rmsnorm(x, weight, eps), bits, group_size, clip)
