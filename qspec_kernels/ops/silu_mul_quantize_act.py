"""`silu_mul_quantize_act`: gate and quantise in one pass, for the input of a quantised down projection."""

from jaxtyping import Float
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.formats import QuantizedActivation
from qspec_kernels.ops._library import register
from qspec_kernels.ops.quantize_act import check_quantization, fake
from qspec_kernels.ops.silu_mul import check_gate_up


def silu_mul_quantize_act(
    gate_up: Float[Tensor, "*batch two_f"], *, bits: int = 8, group_size: int | None = None, clip: float = 1.0
) -> QuantizedActivation:
    """`quantize_act(silu_mul(gate_up), ...)`, bit for bit, the rounding to gate_up's dtype included.

    Parameters and errors are those of `silu_mul` and `quantize_act`.
    """
    check_gate_up(gate_up)
    group_size = check_quantization(gate_up.shape[-1] // 2, bits, group_size, clip)
    codes, scales = _silu_mul_quantize_act(gate_up, bits, group_size, clip)
    return QuantizedActivation(codes, scales, bits, group_size)


def _op(gate_up: Tensor, bits: int, group_size: int, clip: float) -> tuple[Tensor, Tensor]:
    rows = gate_up.reshape(-1, gate_up.shape[-1]).contiguous()
    function = dispatch.find("silu_mul_quantize_act", gate_up.device, gate_up.dtype)
    codes, scales = function(rows, bits, group_size, clip)
    batch = gate_up.shape[:-1]
    return codes.view(*batch, codes.shape[1]), scales.view(*batch, scales.shape[1])


_silu_mul_quantize_act = register(
    "silu_mul_quantize_act(Tensor gate_up, int bits, int group_size, float clip) -> (Tensor, Tensor)",
    _op,
    lambda gate_up, bits, group_size, clip: fake(
        gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2), group_size
    ),
)
