"""Checks that the format files share; each error names the value and the expectation."""

import torch
from torch import Tensor

from qspec_kernels.errors import FormatError
from qspec_kernels.formats._layout import CHUNK, FRAGMENT_K, TILE_ROWS
from qspec_kernels.formats.packed import PackedWeight

_FITTING = "The format's quantize makes codes and scales that fit each other."


def weight(matrix: Tensor) -> None:
    """A weight that can be quantised: floating point, [n, k], not empty."""
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise FormatError(
            f"a weight has shape [n, k] with n, k >= 1, got {list(matrix.shape)}",
            "Reshape it to [out_features, in_features].",
        )
    if not matrix.is_floating_point():
        raise FormatError(
            f"a weight to quantise is floating point, got {matrix.dtype}", "Convert it: weight.float()."
        )


def group_size(value: int, k: int) -> int:
    """`value`, or k where it is -1 (one scale per output row)."""
    if value == -1:
        return k
    if value < 1:
        raise FormatError(
            f"group_size is at least 1, or -1 for one scale per row; got {value}", "Usual are 32, 64 and 128."
        )
    return min(value, k)


def codes_and_scales(
    codes: Tensor,
    scales: Tensor,
    group: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    limits: tuple[int, int],
) -> None:
    """Codes [n, k] and scales [n, ceil(k / group)] of the dtypes and range that the format has."""
    if codes.ndim != 2 or codes.numel() == 0:
        raise FormatError(f"codes have shape [n, k] with n, k >= 1, got {list(codes.shape)}", _FITTING)
    if (codes.dtype, scales.dtype) != dtypes:
        raise FormatError(
            f"codes and scales have dtypes {dtypes[0]} and {dtypes[1]}, got {codes.dtype} and {scales.dtype}",
            _FITTING,
        )
    expected = [codes.shape[0], -(-codes.shape[1] // group)]
    if list(scales.shape) != expected:
        raise FormatError(
            f"scales of codes {list(codes.shape)} in groups of {group} have shape {expected}, "
            f"got {list(scales.shape)}",
            "Pass the group_size that the weight was quantised with.",
        )
    if codes.is_meta:  # no values to look at
        return
    low, high = (int(value) for value in codes.aminmax())
    if low < limits[0] or high > limits[1]:
        raise FormatError(f"codes lie in {limits[0]}..{limits[1]}, got {low}..{high}", _FITTING)


def packed(
    weight: PackedWeight, format: str, data_shape: tuple[int, ...], scales_shape: tuple[int, ...]
) -> None:
    """A `PackedWeight` of this format whose tensors have the shapes that it implies."""
    if weight.format != format:
        raise FormatError(
            f"expected a weight packed as {format!r}, got {weight.format!r}",
            "qspec_kernels.formats.convert(packed, name) changes the byte order.",
        )
    for name, tensor, shape in (("data", weight.data, data_shape), ("scales", weight.scales, scales_shape)):
        if tuple(tensor.shape) != shape:
            raise FormatError(
                f"{name} of a {format} weight of shape {list(weight.shape)}, group size {weight.group_size}, "
                f"has shape {list(shape)}, got {list(tensor.shape)}",
                f"Make it with qspec_kernels.formats.{format}.pack.",
            )


def tiles(weight: PackedWeight, format: str, group: int, k_multiple: int) -> None:
    """`packed`, of tensors as `_layout.pack_tiles` and `pack_scale_tiles` make them."""
    n, k = weight.shape
    rows, chunks = -(-n // TILE_ROWS), -(-k // k_multiple) * (k_multiple // CHUNK)
    packed(weight, format, (rows, chunks, TILE_ROWS, CHUNK // 2), (rows, -(-k // group), TILE_ROWS))


def fragments(weight: PackedWeight, format: str, group: int) -> None:
    """`packed`, of tensors as `_layout.pack_fragments` and `pack_scale_columns` make them."""
    n, k = weight.shape
    rows, blocks = -(-n // TILE_ROWS), -(-k // FRAGMENT_K)
    packed(weight, format, (rows, blocks, 8, 4, 2, 2, 4), (-(-k // group), rows * TILE_ROWS))


def block_size(value: int, expected: int) -> None:
    """The one block size that a microscaling format has."""
    if value != expected:
        raise FormatError(
            f"this format has blocks of {expected} along k, got group_size {value}", "Leave group_size out."
        )
