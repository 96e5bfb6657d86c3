"""`silu_mul_hadamard_quantize_act`: gate, rotate and quantise in one pass, for a rotated down projection."""

import torch
from jaxtyping import Float
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.formats import QuantizedActivation
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register
from qspec_kernels.ops.hadamard import base, check_block
from qspec_kernels.ops.quantize_act import check_quantization, fake
from qspec_kernels.ops.silu_mul import check_gate_up


def silu_mul_hadamard_quantize_act(
    gate_up: Float[Tensor, "*batch two_f"],
    *,
    block: int | None = None,
    diagonal: Float[Tensor, " f"] | None = None,
    bits: int = 8,
    group_size: int | None = None,
    clip: float = 1.0,
) -> QuantizedActivation:
    """`quantize_act(hadamard(silu_mul(gate_up), block=block, diagonal=diagonal), ...)`, bit for bit.

    The roundings to gate_up's dtype in between are included. Parameters and errors are those of `silu_mul`,
    `hadamard` and `quantize_act`.
    """
    check_gate_up(gate_up)
    width = gate_up.shape[-1] // 2
    block = check_block(width, block)
    if diagonal is not None:
        _check.same_device("diagonal", diagonal, "gate_up", gate_up)
        _check.shape("diagonal", diagonal, (width,), "one factor per gated feature")
    group_size = check_quantization(width, bits, group_size, clip)
    codes, scales = _silu_mul_hadamard_quantize_act(gate_up, diagonal, block, bits, group_size, clip)
    return QuantizedActivation(codes, scales, bits, group_size)


def _op(
    gate_up: Tensor, diagonal: Tensor | None, block: int, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    rows = gate_up.reshape(-1, gate_up.shape[-1]).contiguous()
    if diagonal is not None:
        diagonal = diagonal.to(torch.promote_types(gate_up.dtype, torch.float32)).contiguous()
    function = dispatch.find("silu_mul_hadamard_quantize_act", gate_up.device, gate_up.dtype)
    codes, scales = function(rows, base(block, gate_up.device), diagonal, block, bits, group_size, clip)
    batch = gate_up.shape[:-1]
    return codes.view(*batch, codes.shape[1]), scales.view(*batch, scales.shape[1])


_silu_mul_hadamard_quantize_act = register(
    "silu_mul_hadamard_quantize_act(Tensor gate_up, Tensor? diagonal, int block, int bits, int group_size,"
    " float clip) -> (Tensor, Tensor)",
    _op,
    lambda gate_up, diagonal, block, bits, group_size, clip: fake(
        gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2), group_size
    ),
)
