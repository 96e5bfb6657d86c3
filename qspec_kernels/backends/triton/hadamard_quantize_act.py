"""Rotation, then quantisation, in one pass where a row is one rotation that one program holds."""

# constants and loops of device code are Triton's own
# pyright: reportArgumentType=false

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._hadamard import Plan, matrix_units, plan, rotated
from qspec_kernels.backends.triton._interpreter import rounded
from qspec_kernels.backends.triton._quantize import quantize_rows
from qspec_kernels.backends.triton._rows import (
    BF16,
    F32,
    TYPES,
    codes_of,
    launch,
    magnitudes,
    scale_of,
    variant,
)
from qspec_kernels.backends.triton._variants import Variant
from qspec_kernels.backends.triton.hadamard import hadamard


@triton.jit
def _kernel(
    codes, scales, x, base, clip, GROUP: tl.constexpr, TOP: tl.constexpr, SCALE: tl.constexpr,
    M: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, D_TILE: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """A program per row. GROUP is a power of two, or the whole row."""
    K: tl.constexpr = M * Q * P
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, P)[None, :]
    line = tl.arange(0, D_TILE)
    y = rotated(
        x, base, None, row, row + 1, column, line, SCALE, 0, False, M, Q, P, ROWS, D_TILE, STEP
    )  # fmt: skip
    at = line[:, None] * P + column
    value = tl.where(at < K, rounded(y, x.dtype.element_ty).to(tl.float32), 0.0)
    if GROUP == K:
        largest = tl.max(tl.max(magnitudes(value), 1, keep_dims=True), 0, keep_dims=True)
        scale = scale_of(largest, clip, TOP)
        tl.store(scales + row + tl.zeros([1, 1], tl.int32), scale)
    else:
        # features in their order, by groups
        grouped = tl.reshape(magnitudes(value), [D_TILE * P // GROUP, GROUP])
        of_group = scale_of(tl.max(grouped, 1), clip, TOP)
        group = tl.arange(0, D_TILE * P // GROUP)
        groups: tl.constexpr = (K + GROUP - 1) // GROUP
        tl.store(scales + row * groups + group, of_group, mask=group < groups)
        scale = tl.reshape(tl.broadcast_to(of_group[:, None], grouped.shape), [D_TILE, P])
    tl.store(codes + row * K + at, codes_of(value, scale, TOP), mask=at < K)


def hadamard_quantize_act(
    x: Tensor, base: Tensor, block: int, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, K] -> codes int8 [M, K], scales [M, groups] of x rotated in blocks of width `block`."""
    rows, k = x.shape
    cut = plan(block, len(base))
    if not _fits(cut, block, k, group_size):
        rotated_rows = hadamard(x.view(-1, block), base, False, None).view(rows, k)
        return quantize_rows("", rotated_rows, None, 0.0, bits, group_size, clip)
    codes = torch.empty(rows, k, dtype=torch.int8, device=x.device)
    scales = torch.empty(rows, triton.cdiv(k, group_size), dtype=torch.float32, device=x.device)
    constants = _constants(cut, k, bits, group_size)
    launch(_kernel, (rows,), (codes, scales, x, base, clip), constants, cut.warps)
    return codes, scales


def _fits(cut: Plan, block: int, k: int, group_size: int) -> bool:
    return block == k and cut.tiles == cut.ROWS == 1 and group_size in (k, triton.next_power_of_2(group_size))


def _constants(cut: Plan, k: int, bits: int, group_size: int) -> dict[str, Any]:
    return {"GROUP": group_size, "TOP": 2 ** (bits - 1) - 1, "SCALE": k**-0.5, **cut._asdict()}


def variants(arch: int) -> Iterator[Variant]:
    """Head and intermediate sizes of Llama models, whole rows and groups."""
    for dtype, k, m, bits, group in (
        (F32, 4096, 1, 8, 4096), (F32, 8192, 1, 8, 8192), (F32, 11008, 344, 8, 11008),
        (F32, 14336, 28, 8, 14336), (F32, 14336, 28, 4, 128), (BF16, 4096, 1, 8, 4096),
        (BF16, 14336, 28, 4, 128),
    ):  # fmt: skip
        cut = plan(k, m)
        types = {"codes": "*i8", "scales": "*fp32", "x": TYPES[dtype], "base": "*i8", "clip": "fp32"}
        name = f"hadamard_quantize_act {TYPES[dtype][1:]} {k} a{bits} group {group}"
        constants = _constants(cut, k, bits, group)
        yield variant(name, _kernel, types, constants, cut.warps, matrix_units(arch, cut))
