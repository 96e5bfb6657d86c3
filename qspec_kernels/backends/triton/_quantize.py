"""`quantize_act` of what is in memory, of its rmsnorm, and of a gate: one kernel, three ways to its input."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._interpreter import rounded
from qspec_kernels.backends.triton._rows import (
    LARGEST,
    TYPES,
    block_of,
    codes_of,
    gated,
    launch,
    magnitudes,
    normed,
    rms,
    scale_of,
    variant,
    warps_of,
)
from qspec_kernels.backends.triton._sizes import cdiv, next_power_of_2
from qspec_kernels.backends.triton._variants import Variant

# elements of a program where a row has several groups
TILE = 4096


@triton.jit
def _value(x, at, mask, gain, scale, K: tl.constexpr, OF: tl.constexpr):
    """Elements `at` of the row at x, rounded as the op in front rounds them, in float32."""
    value = tl.load(x + at, mask=mask, other=0.0)
    if OF == "rmsnorm":
        value = rounded(normed(value, scale, tl.load(gain + at, mask=mask, other=0.0)), value.dtype)
    elif OF == "silu_mul":
        value = rounded(gated(value, tl.load(x + K + at, mask=mask, other=0.0)), value.dtype)
    return value.to(tl.float32)


@triton.jit
def _kernel(
    codes, scales, x, gain, eps, clip, K: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, TOP: tl.constexpr, OF: tl.constexpr,
):  # fmt: skip
    """Program (row, tile): ROWS groups of the row, COLUMNS of their elements at a time."""
    row = tl.program_id(0).to(tl.int64)
    x += row * (2 * K if OF == "silu_mul" else K)
    scale = 0.0
    if OF == "rmsnorm":
        scale = rms(x + tl.zeros([1, 1], tl.int32), eps, K, BLOCK)
    group = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    largest = tl.zeros([ROWS, 1], tl.int32)
    for start in range(0, GROUP, COLUMNS):
        at = group * GROUP + start + column
        mask = (start + column < GROUP) & (at < K)
        value = _value(x, at, mask, gain, scale, K, OF)
        largest = tl.maximum(largest, tl.max(magnitudes(value), 1, keep_dims=True))
    act_scale = scale_of(largest, clip, TOP)
    for start in range(0, GROUP, COLUMNS):
        at = group * GROUP + start + column
        mask = (start + column < GROUP) & (at < K)
        value = _value(x, at, mask, gain, scale, K, OF)
        tl.store(codes + row * K + at, codes_of(value, act_scale, TOP), mask=mask)
    groups: tl.constexpr = (K + GROUP - 1) // GROUP
    tl.store(scales + row * groups + group, act_scale, mask=group < groups)


def quantize_rows(
    of: str, x: Tensor, gain: Tensor | None, eps: float, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """The launch that the ops share; `of` is the op in front, "" for none."""
    rows, k = x.shape[0], x.shape[1] // (2 if of == "silu_mul" else 1)
    groups = cdiv(k, group_size)
    codes = torch.empty(rows, k, dtype=torch.int8, device=x.device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    constants, warps = _plan(of, k, bits, group_size)
    grid = (rows, cdiv(groups, constants["ROWS"]))
    launch(_kernel, grid, (codes, scales, x, gain, eps, clip), constants, warps)
    return codes, scales


def _plan(of: str, k: int, bits: int, group_size: int) -> tuple[dict[str, Any], int]:
    """The kernel's constants and warps: of a row's width and groups alone."""
    columns = block_of(group_size)
    # a program that has to find the root mean square first takes as much of the row as it can
    tile = LARGEST if of == "rmsnorm" else TILE
    groups = next_power_of_2(cdiv(k, group_size))
    rows = min(groups, max(1, tile // columns))
    block = block_of(k)
    elements = max(rows * columns, block if of == "rmsnorm" else 0)
    constants = {
        "K": k, "GROUP": group_size, "ROWS": rows, "COLUMNS": columns, "BLOCK": block,
        "TOP": 2 ** (bits - 1) - 1, "OF": of,
    }  # fmt: skip
    return constants, warps_of(elements)


def quantize_variant(of: str, dtype: torch.dtype, k: int, bits: int, group_size: int) -> Variant:
    """What `quantize_rows` compiles for such a call."""
    constants, warps = _plan(of, k, bits, group_size)
    types = {"codes": "*i8", "scales": "*fp32", "x": TYPES[dtype], "eps": "fp32", "clip": "fp32"}
    if of == "rmsnorm":
        types |= {"gain": "*fp32"}
    else:
        constants |= {"gain": None}
    name = f"{of + '_' if of else ''}quantize_act {TYPES[dtype][1:]} {k} a{bits} group {group_size}"
    return variant(name, _kernel, types, constants, warps)
