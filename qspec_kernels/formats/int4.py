"""`int4`: symmetric 4-bit integers with an fp16 scale per group; the order checkpoints hold.

A code is -8..7 and stands for code * scale. Along K each `group_size` consecutive codes of a row share
a scale (the last group is shorter where K is no multiple), or the whole row does.

Bytes: `data` is uint8 [n, ceil(k / 2)]. A byte holds two neighbours along K as code + 8, the even k in
the low nibble; the last high nibble of an odd K holds 8, a code of zero. `scales` is fp16 [n, groups].
Every activation precision (`w4a16`, `w4a8`, `w4a4`) reads these same codes.
"""

import torch
from jaxtyping import Float, Float16, Float32, Int8
from torch import Tensor

from qspec_kernels.formats import _check, _layout
from qspec_kernels.formats.packed import PackedWeight

# scales lie row by row, as the codes do
SCALE_ROW_AXIS = 0

CODE_MIN, CODE_MAX = -8, 7
SCALE_MAX = 65504.0  # the largest finite fp16
CLIP_RATIOS = tuple(1.0 - 0.025 * step for step in range(13))


def quantize(
    weight: Float[Tensor, "n k"], group_size: int = 128, *, clip_search: bool = False
) -> tuple[Int8[Tensor, "n k"], Float16[Tensor, "n groups"]]:
    """Round a weight to the nearest codes: scale = absmax / 7, code = rint(weight / scale) within -8..7.

    The weight is taken in float32; the quotient absmax / 7 is rounded to float32 and then to fp16, and
    codes are found with the fp16 scale, by one float32 division, ties to even.

    A group of zeros, or one so small that its scale rounds to zero, has scale 0 and codes 0. A group
    whose scale exceeds fp16 has scale 65504 and saturated codes. A group with a NaN has scale NaN and
    codes 0, so that every output it touches is NaN.

    Parameters
    ----------
    group_size
        Consecutive k that share a scale; -1 for one scale per row.
    clip_search
        Try smaller scales (`CLIP_RATIOS` times absmax / 7) for each group and keep the one with the
        least squared error, the largest of equals.

    Raises
    ------
    FormatError
        If the weight is no floating-point matrix or the group size is none.

    Examples
    --------
    >>> import torch
    >>> codes, scales = quantize(torch.tensor([[7.0, -3.5, 1.5, -0.25]]), group_size=4)
    >>> codes.tolist(), scales.tolist()
    ([[7, -4, 2, 0]], [[1.0]])
    """
    _check.weight(weight)
    group = _check.group_size(group_size, weight.shape[1])
    parts = [_quantize_piece(piece.float(), group, clip_search) for piece in _layout.pieces(weight)]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts])


def _quantize_piece(weight: Tensor, group: int, clip_search: bool) -> tuple[Tensor, Tensor]:
    groups = _layout.grouped(weight, group)
    absmax = groups.abs().amax(2)
    scales = _round_scale(absmax / 7)
    if clip_search:
        least = torch.full_like(absmax, torch.inf)
        for ratio in CLIP_RATIOS:
            candidate = _round_scale(absmax * ratio / 7)
            restored = _codes(groups, candidate) * candidate[:, :, None].float()
            error = (restored - groups).square_().sum(2)
            # a NaN compares false, so a group with one keeps the scale NaN it has
            scales = torch.where(error < least, candidate, scales)
            least = torch.where(error < least, error, least)
    return _codes(groups, scales).flatten(1)[:, : weight.shape[1]].to(torch.int8), scales


def _round_scale(scale: Tensor) -> Tensor:
    return scale.clamp(max=SCALE_MAX).half()


def _codes(groups: Tensor, scales: Tensor) -> Tensor:
    divisors = scales[:, :, None].float()
    # nan_to_num: a NaN scale leaves codes 0; infinities saturate like any large value
    codes = torch.where(divisors == 0, 0.0, groups / divisors).round_().nan_to_num_(nan=0.0)
    return codes.clamp_(CODE_MIN, CODE_MAX)


def dequantize(
    codes: Int8[Tensor, "n k"], scales: Float16[Tensor, "n groups"], group_size: int = 128
) -> Float32[Tensor, "n k"]:
    """The values code * scale, exact in float32.

    Examples
    --------
    >>> import torch
    >>> dequantize(torch.tensor([[7, -4, 2, 0]], dtype=torch.int8), torch.tensor([[0.5]]).half(), 4).tolist()
    [[3.5, -2.0, 1.0, 0.0]]
    """
    group = _check.group_size(group_size, codes.shape[1])
    return codes.float() * _layout.spread(scales.float(), group, codes.shape[1])


def check(codes: Int8[Tensor, "n k"], scales: Float16[Tensor, "n groups"], group_size: int) -> int:
    """The group size of codes and scales that fit each other: `group_size`, or k where that is -1.

    Raises
    ------
    FormatError
        If shapes, dtypes and group size contradict each other or a code lies outside -8..7.
    """
    group = _check.group_size(group_size, codes.shape[-1])
    _check.codes_and_scales(codes, scales, group, (torch.int8, torch.float16), (CODE_MIN, CODE_MAX))
    return group


def pack(
    codes: Int8[Tensor, "n k"], scales: Float16[Tensor, "n groups"], group_size: int = 128
) -> PackedWeight:
    """Codes and scales as bytes.

    Raises
    ------
    FormatError
        If shapes, dtypes and group size contradict each other or a code lies outside -8..7.

    Examples
    --------
    >>> import torch
    >>> packed = pack(torch.tensor([[7, -4, 2]], dtype=torch.int8), torch.tensor([[0.5]]).half(), 4)
    >>> [hex(byte) for byte in packed.data[0].tolist()]  # 7 + 8 | (-4 + 8) << 4, then 2 + 8 | 8 << 4
    ['0x4f', '0x8a']
    """
    group = check(codes, scales, group_size)
    nibbles = (codes + 8).to(torch.uint8)
    n, k = codes.shape
    return PackedWeight(_layout.pack_pairs(nibbles, pad=8), scales.contiguous(), "int4", (n, k), group)


def unpack(packed: PackedWeight) -> tuple[Int8[Tensor, "n k"], Float16[Tensor, "n groups"]]:
    """The codes and scales that `pack` was given, bit for bit.

    Raises
    ------
    FormatError
        If the weight is packed in another order or its tensors contradict its shape.

    Examples
    --------
    >>> import torch
    >>> data = torch.tensor([[0x4F, 0x8A]], dtype=torch.uint8)
    >>> codes, scales = unpack(PackedWeight(data, torch.tensor([[0.5]]).half(), "int4", (1, 3), 3))
    >>> codes.tolist(), scales.tolist()
    ([[7, -4, 2]], [[0.5]])
    """
    n, k = packed.shape
    _check.packed(packed, "int4", (n, -(-k // 2)), (n, -(-k // packed.group_size)))
    return _layout.unpack_pairs(packed.data, k).to(torch.int8) - 8, packed.scales
