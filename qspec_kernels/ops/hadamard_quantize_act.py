"""`hadamard_quantize_act`: rotate and quantise in one pass, for the input of a rotated linear."""

from jaxtyping import Float
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.formats import QuantizedActivation
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register
from qspec_kernels.ops.hadamard import base, check_block
from qspec_kernels.ops.quantize_act import check_quantization, fake


def hadamard_quantize_act(
    x: Float[Tensor, "*batch k"],
    *,
    block: int | None = None,
    bits: int = 8,
    group_size: int | None = None,
    clip: float = 1.0,
) -> QuantizedActivation:
    """`quantize_act(hadamard(x, block=block), ...)`, bit for bit, the rounding to x's dtype included.

    Parameters and errors are those of `hadamard` and `quantize_act`.
    """
    _check.floating("x", x)
    block = check_block(x.shape[-1], block)
    group_size = check_quantization(x.shape[-1], bits, group_size, clip)
    codes, scales = _hadamard_quantize_act(x, block, bits, group_size, clip)
    return QuantizedActivation(codes, scales, bits, group_size)


def _op(x: Tensor, block: int, bits: int, group_size: int, clip: float) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    matrix = base(block, x.device)
    function = dispatch.find("hadamard_quantize_act", x.device, x.dtype, sizes=(x.shape[-1], len(matrix)))
    codes, scales = function(rows, matrix, block, bits, group_size, clip)
    return codes.view(x.shape), scales.view(*x.shape[:-1], scales.shape[1])


_hadamard_quantize_act = register(
    "hadamard_quantize_act(Tensor x, int block, int bits, int group_size, float clip) -> (Tensor, Tensor)",
    _op,
    lambda x, block, bits, group_size, clip: fake(x, group_size),
)
