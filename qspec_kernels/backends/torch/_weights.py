"""Packed weights in their canonical order as numbers, some rows at a time."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from qspec_kernels.formats import PackedWeight, int4, mxfp4


def int4_rows(
    data: Tensor, scales: Tensor, k: int, group_size: int, dtype: torch.dtype
) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """A function (start, stop) -> codes [n, k] and scales [n, groups] of those rows, in `dtype`."""

    def rows(start: int, stop: int) -> tuple[Tensor, Tensor]:
        part = PackedWeight(data[start:stop], scales[start:stop], "int4", (stop - start, k), group_size)
        codes, part_scales = int4.unpack(part)
        return codes.to(dtype), part_scales.to(dtype)

    return rows


def mxfp4_rows(
    data: Tensor, scales: Tensor, k: int, group_size: int, dtype: torch.dtype
) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """As `int4_rows`: integers -12..12, twice the E2M1 values, and their scales 2^(E - 128)."""

    def rows(start: int, stop: int) -> tuple[Tensor, Tensor]:
        part = PackedWeight(data[start:stop], scales[start:stop], "mxfp4", (stop - start, k), group_size)
        codes, part_scales = mxfp4.unpack(part)
        doubled, powers = _tables(dtype, data.device)
        return doubled[codes.int()], powers[part_scales.int()]

    return rows


@lru_cache
def _tables(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    magnitudes = (0, 1, 2, 3, 4, 6, 8, 12)
    doubled = torch.tensor([*magnitudes, *(-value for value in magnitudes)], dtype=dtype, device=device)
    powers = [2.0 ** (exponent - 128) for exponent in range(255)]
    return doubled, torch.tensor([*powers, torch.nan], dtype=dtype, device=device)
