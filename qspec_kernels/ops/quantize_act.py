"""`quantize_act`: activations to 8- or 4-bit integers, per token or per token and group."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.formats import QuantizedActivation
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register


def quantize_act(
    x: Float[Tensor, "*batch k"], *, bits: int = 8, group_size: int | None = None, clip: float = 1.0
) -> QuantizedActivation:
    """Round activations to integers: scale = absmax * clip / top, code = rint(x / scale) within -top..top.

    `top` is 127 for 8 bits and 7 for 4. Everything is taken in float32 (float64 for float64 input),
    with true division and ties to even. A row or group of zeros has scale 0 and codes 0; where a row or
    group holds a NaN its scale is NaN and its codes are 0, so that whatever it touches becomes NaN.

    Parameters
    ----------
    group_size
        Consecutive k that share a scale; None for one scale per token. "w4a4" needs the weight's.
    clip
        Fraction of absmax that the largest code stands for, in (0, 1].

    Raises
    ------
    UsageError
        If bits, group size, clip or x's dtype is not one of those.

    Examples
    --------
    A byte holds one code in two's complement, of 4 bits too; 1.5 and 2.5 steps are ties:

    >>> import torch
    >>> x = torch.tensor([[254.0, 3.0, 5.0, -254.0, 0.5, -3.5]])
    >>> a8 = quantize_act(x)
    >>> [hex(byte) for byte in a8.codes.view(torch.uint8)[0].tolist()], a8.scales.tolist()
    (['0x7f', '0x2', '0x2', '0x81', '0x0', '0xfe'], [[2.0]])
    >>> a4 = quantize_act(x[:, 4:], bits=4, group_size=2)
    >>> [hex(byte) for byte in a4.codes.view(torch.uint8)[0].tolist()], a4.scales.tolist()
    (['0x1', '0xf9'], [[0.5]])
    """
    _check.floating("x", x)
    group_size = check_quantization(x.shape[-1], bits, group_size, clip)
    codes, scales = _quantize_act(x, bits, group_size, clip)
    return QuantizedActivation(codes, scales, bits, group_size)


def check_quantization(k: int, bits: int, group_size: int | None, clip: float) -> int:
    """The group size that is meant, once all three are known to be good."""
    if bits not in (8, 4):
        raise UsageError(f"bits is {bits}; expected 8 or 4", "Linears read 8 as act='a8', 4 as act='a4'.")
    if not (0.0 < clip <= 1.0):
        raise UsageError(f"clip is {clip}; expected a number in (0, 1]", "1.0 clips nothing.")
    if group_size is None:
        return max(k, 1)
    if group_size < 1:
        raise UsageError(
            f"group_size is {group_size}; expected at least 1", "None means one scale per token."
        )
    return min(group_size, max(k, 1))


def _op(x: Tensor, bits: int, group_size: int, clip: float) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    codes, scales = dispatch.find("quantize_act", x.device, x.dtype)(rows, bits, group_size, clip)
    return codes.view(x.shape), scales.view(*x.shape[:-1], scales.shape[1])


def fake(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Empty codes and scales of the shapes and dtypes that quantising x gives."""
    scales = x.new_empty(
        *x.shape[:-1], math.ceil(x.shape[-1] / group_size), dtype=torch.promote_types(x.dtype, torch.float32)
    )
    return torch.empty_like(x, dtype=torch.int8, memory_format=torch.contiguous_format), scales


_quantize_act = register(
    "quantize_act(Tensor x, int bits, int group_size, float clip) -> (Tensor, Tensor)",
    _op,
    lambda x, bits, group_size, clip: fake(x, group_size),
)
