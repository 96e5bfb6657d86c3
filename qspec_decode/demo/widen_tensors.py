"""Repeating matrices along both sides, dense ones and the codes of quantised ones."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from qspec_kernels import PackedWeight, UsageError, formats


def widen_dense(
    weight: Float[Tensor, "n k"], out_tile: int, in_tile: int, *, parts: Sequence[int] = ()
) -> Float[Tensor, "wide_n wide_k"]:
    """[out_tile * n, in_tile * k]: the matrix repeated, divided by `in_tile`, a power of two.

    `parts` are the row counts of matrices fused into it, which are repeated each for itself.
    """
    return (weight / in_tile)[repeated_rows(len(weight), out_tile, parts, weight.device)].repeat(1, in_tile)


def widen_packed(
    packed: PackedWeight, out_tile: int, in_tile: int, *, parts: Sequence[int] = ()
) -> PackedWeight:
    """The same for a quantised matrix, in the byte order it has: codes repeated, scales divided.

    Raises
    ------
    UsageError
        If the last group is shorter, so that repeated groups would not be groups, or a scale is so
        small that dividing it by `in_tile` is not exact.
    """
    rows = repeated_rows(packed.shape[0], out_tile, parts, packed.device)
    return tile_packed(packed, rows, in_tile, divisor=in_tile)


def repeated_rows(n: int, tile: int, parts: Sequence[int], device: torch.device) -> Tensor:
    """Which row of the small matrix each row of the wide one repeats."""
    pieces = torch.arange(n, device=device).split(list(parts) or [n])
    return torch.cat([piece.repeat(tile) for piece in pieces])


def tile_packed(packed: PackedWeight, rows: Tensor, in_tile: int, divisor: int) -> PackedWeight:
    """A quantised matrix of the given rows, repeated along its input, its scales divided."""
    k, group = packed.shape[1], packed.group_size
    if in_tile > 1 and k % group:
        raise UsageError(
            f"cannot widen {k} input features in groups of {group}: the last group is shorter",
            "Load the model with a group size that divides its widths.",
        )
    format = formats.get(packed.format)
    codes, scales = format.unpack(packed)
    divide = _divide_fp16 if scales.dtype == torch.float16 else _divide_e8m0
    scales = divide(scales, codes, divisor)
    return format.pack(codes[rows].repeat(1, in_tile), scales[rows].repeat(1, in_tile), group)


def _divide_fp16(scales: Tensor, codes: Tensor, divisor: int) -> Tensor:
    divided = scales / divisor
    if not torch.equal((divided * divisor).nan_to_num(), scales.nan_to_num()):
        least = float(scales[scales > 0].min())
        raise UsageError(
            f"int4 scales down to {least:.3g} cannot be divided by {divisor} exactly in fp16",
            "Widen to a smaller scale, or load the model in another precision.",
        )
    return divided


def _divide_e8m0(scales: Tensor, codes: Tensor, divisor: int) -> Tensor:
    """Scale bytes are exponents. Blocks of zeros keep byte 0, blocks of NaN byte 255."""
    exponent = divisor.bit_length() - 1
    special = (scales == 255) | (scales == 0)
    too_small = ~special & (scales < exponent)
    if too_small.any() or (exponent and _has_values(codes, scales == 0)):
        raise UsageError(f"mxfp4 blocks below 2^{exponent - 125} cannot be divided by {divisor} exactly")
    return torch.where(special, scales, scales - exponent)


def _has_values(codes: Tensor, blocks: Tensor) -> bool:
    """Whether any of the chosen blocks holds a code other than the two zeros."""
    if not blocks.any():
        return False
    inside = blocks.repeat_interleave(32, dim=1)[:, : codes.shape[1]]
    return bool((codes[inside] & 7).any())
