"""`mxfp4`: 4-bit floats with a power-of-two scale per 32, after OCP Microscaling Formats 1.0.

A code is E2M1: bits 0..2 index the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign. The scale
is E8M0: byte e stands for 2^(e - 127), 255 for NaN. Blocks of 32 lie along K; the last block of a row is
shorter where K is no multiple of 32.

Bytes: `data` is uint8 [n, ceil(k / 2)], the even k in the low nibble; the last high nibble of an odd K
is 0. `scales` is uint8 [n, ceil(k / 32)].
"""

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from qspec_kernels.formats import _check, _layout
from qspec_kernels.formats.packed import PackedWeight

# scales lie row by row, as the codes do
SCALE_ROW_AXIS = 0

BLOCK = 32
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LEVELS = MAGNITUDES + tuple(-magnitude for magnitude in MAGNITUDES)
BIAS = 127
NAN_SCALE = 255
# the exponent of 4.0, the largest power of two among the magnitudes
EMAX = 2


def quantize(
    weight: Float[Tensor, "n k"],
) -> tuple[UInt8[Tensor, "n k"], UInt8[Tensor, "n blocks"]]:
    """Cast a weight directly: scale exponent floor(log2(absmax)) - 2, elements to nearest, saturated.

    Ties between two magnitudes go to the even code (0.25 -> 0, 0.75 -> 1, 1.25 -> 1, 1.75 -> 2, 2.5 -> 2,
    3.5 -> 4, 5 -> 4); scaled magnitudes above 5 become 6. The sign bit is kept, also of zeros, so -0.0 is
    code 8. Every step is exact, in float32, bf16, fp16 and float64.

    The exponent is clamped to what E8M0 has: blocks below 2^-125, float32 subnormals included, are
    rounded on the grid of scale 2^-127 (byte 0), as are blocks of zeros; float64 blocks beyond 2^129
    saturate at 6 * 2^127. An infinity counts as 2^128: scale byte 253, code +-6. A block with a NaN has
    scale byte 255 and codes 0, so that every output it touches is NaN.

    Raises
    ------
    FormatError
        If the weight is no floating-point matrix.

    Examples
    --------
    >>> import torch
    >>> codes, scales = quantize(torch.tensor([[6.0, -0.25, 2.5, -0.5, -0.0, 5.1]]))
    >>> codes.tolist(), scales.tolist()  # 6 = 1.5 * 2^2, so the scale is 2^0, byte 127
    ([[7, 8, 4, 9, 8, 7]], [[127]])
    """
    _check.weight(weight)
    if weight.dtype != torch.float64:
        weight = weight.float()
    parts = [_quantize_piece(piece) for piece in _layout.pieces(weight)]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts])


def _quantize_piece(weight: Tensor) -> tuple[Tensor, Tensor]:
    blocks = _layout.grouped(weight, BLOCK)
    absmax = blocks.abs().amax(2)
    is_nan = absmax.isnan()
    # frexp: absmax = m * 2^e with m in [0.5, 1), so floor(log2(absmax)) = e - 1
    exponents = torch.frexp(torch.where(absmax.isfinite(), absmax, 0.0)).exponent - 1
    exponents = torch.where(absmax == 0, -BIAS, exponents)
    exponents = torch.where(absmax == torch.inf, 128, exponents)
    scales = (exponents - EMAX).clamp(-BIAS, BIAS) + BIAS
    scales = torch.where(is_nan, NAN_SCALE, scales)

    inverse = torch.tensor([2.0 ** (BIAS - e) for e in range(255)] + [0.0], dtype=weight.dtype)
    scaled = blocks * inverse.to(weight.device)[scales][:, :, None]
    codes = _nearest(scaled.abs()) | (scaled.signbit().to(torch.uint8) << 3)
    codes = codes.masked_fill_(is_nan[:, :, None], 0)
    return codes.flatten(1)[:, : weight.shape[1]].contiguous(), scales.to(torch.uint8)


def _nearest(magnitude: Tensor) -> Tensor:
    """Codes 0..7 of the nearest magnitudes; rint on each binade's own grid takes ties to even codes."""
    low = (magnitude * 2).round()  # steps of 0.5 up to 2: codes 0..4
    middle = magnitude.round() + 2  # steps of 1 up to 4: codes 4..6
    high = (magnitude / 2).round() + 4  # steps of 2 above: codes 6, 7
    codes = torch.where(magnitude < 2, low, torch.where(magnitude < 4, middle, high))
    return codes.nan_to_num_(nan=0.0).clamp_(max=7).to(torch.uint8)


def dequantize(
    codes: UInt8[Tensor, "n k"], scales: UInt8[Tensor, "n blocks"], group_size: int = BLOCK
) -> Float32[Tensor, "n k"]:
    """The values level * 2^(scale - 127), exact in float32 wherever float32 has them.

    Beyond float32 (never from a float32 weight) they are infinite; a block of scale 255 is NaN.

    Examples
    --------
    >>> import torch
    >>> codes = torch.tensor([[7, 8, 4, 9]], dtype=torch.uint8)
    >>> dequantize(codes, torch.tensor([[128]], dtype=torch.uint8)).tolist()
    [[12.0, -0.0, 4.0, -1.0]]
    """
    levels = torch.tensor(LEVELS, device=codes.device)
    powers = torch.tensor([2.0 ** (e - BIAS) for e in range(255)] + [torch.nan], device=codes.device)
    return levels[codes.int()] * _layout.spread(powers[scales.int()], group_size, codes.shape[1])


def check(codes: UInt8[Tensor, "n k"], scales: UInt8[Tensor, "n blocks"], group_size: int) -> None:
    """Raise a FormatError unless shapes and dtypes fit each other, codes are 0..15 and blocks of 32."""
    _check.block_size(group_size, BLOCK)
    _check.codes_and_scales(codes, scales, BLOCK, (torch.uint8, torch.uint8), (0, 15))


def pack(
    codes: UInt8[Tensor, "n k"], scales: UInt8[Tensor, "n blocks"], group_size: int = BLOCK
) -> PackedWeight:
    """Codes and scales as bytes.

    Raises
    ------
    FormatError
        If shapes and dtypes contradict each other or a code lies outside 0..15.

    Examples
    --------
    >>> import torch
    >>> codes, scales = torch.tensor([[7, 8, 4]]).byte(), torch.tensor([[127]]).byte()
    >>> [hex(byte) for byte in pack(codes, scales).data[0].tolist()]
    ['0x87', '0x4']
    """
    check(codes, scales, group_size)
    n, k = codes.shape
    return PackedWeight(_layout.pack_pairs(codes, pad=0), scales.contiguous(), "mxfp4", (n, k), BLOCK)


def unpack(packed: PackedWeight) -> tuple[UInt8[Tensor, "n k"], UInt8[Tensor, "n blocks"]]:
    """The codes and scales that `pack` was given, bit for bit.

    Raises
    ------
    FormatError
        If the weight is packed in another order or its tensors contradict its shape.

    Examples
    --------
    >>> import torch
    >>> data, scales = torch.tensor([[0x87, 0x04]]).byte(), torch.tensor([[127]]).byte()
    >>> unpack(PackedWeight(data, scales, "mxfp4", (1, 3), 32))[0].tolist()
    [[7, 8, 4]]
    """
    n, k = packed.shape
    _check.packed(packed, "mxfp4", (n, -(-k // 2)), (n, -(-k // BLOCK)))
    return _layout.unpack_pairs(packed.data, k), packed.scales
