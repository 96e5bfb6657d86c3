"""Rotation, then quantisation, of what is in memory or of a gate: one kernel, two ways to its input.

One launch where a row is one rotation that one program holds, and a group a power of two or the whole row;
otherwise the ops one after another, whose numbers are the same.
"""

# constants and loops of device code are Triton's own
# pyright: reportArgumentType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._hadamard import Plan, matrix_units, plan, rotated
from qspec_kernels.backends.triton._interpreter import rounded
from qspec_kernels.backends.triton._quantize import quantize_rows
from qspec_kernels.backends.triton._rows import TYPES, codes_of, launch, magnitudes, scale_of, variant
from qspec_kernels.backends.triton._sizes import cdiv, next_power_of_2
from qspec_kernels.backends.triton._variants import Variant
from qspec_kernels.backends.triton.hadamard import hadamard
from qspec_kernels.backends.triton.silu_mul import silu_mul


@triton.jit
def _kernel(
    codes, scales, x, base, diagonal, clip, GROUP: tl.constexpr, TOP: tl.constexpr, SCALE: tl.constexpr,
    PERIOD: tl.constexpr, OF: tl.constexpr, M: tl.constexpr, Q: tl.constexpr, P: tl.constexpr,
    ROWS: tl.constexpr, D_TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A program per row. GROUP is a power of two, or the whole row."""
    K: tl.constexpr = M * Q * P
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, P)[None, :]
    line = tl.arange(0, D_TILE)
    y = rotated(
        x, base, diagonal, row, row + 1, column, line, SCALE, PERIOD, False, M, Q, P, ROWS, D_TILE, STEP, OF,
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


def rotate_quantize(
    of: str, x: Tensor, base: Tensor, diagonal: Tensor | None, block: int, bits: int, group_size: int,
    clip: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The launch that the ops share; `of` is the op in front, "" or "silu_mul"."""
    rows, k = x.shape[0], x.shape[1] // (2 if of == "silu_mul" else 1)
    cut = plan(block, len(base))
    if not _fits(cut, block, k, group_size, diagonal is not None):
        x = silu_mul(x) if of == "silu_mul" else x
        rotated_rows = hadamard(x.view(-1, block), base, False, diagonal).view(rows, k)
        return quantize_rows("", rotated_rows, None, 0.0, bits, group_size, clip)
    codes = torch.empty(rows, k, dtype=torch.int8, device=x.device)
    scales = torch.empty(rows, cdiv(k, group_size), dtype=torch.float32, device=x.device)
    constants = _constants(of, cut, k, bits, group_size, diagonal is not None)
    launch(_kernel, (rows,), (codes, scales, x, base, diagonal, clip), constants, cut.warps)
    return codes, scales


def _fits(cut: Plan, block: int, k: int, group_size: int, scaled: bool) -> bool:
    # a gate and a diagonal beside more than 32 sums are too much for a thread's registers
    crowded = scaled and cut.D_TILE * cut.P // cut.warps > 32 * 32
    whole = block == k and cut.tiles == cut.ROWS == 1 and not crowded
    return whole and group_size in (k, next_power_of_2(group_size))


def _constants(of: str, cut: Plan, k: int, bits: int, group_size: int, scaled: bool) -> dict[str, Any]:
    top, period = 2 ** (bits - 1) - 1, 1 if scaled else 0
    return {"GROUP": group_size, "TOP": top, "SCALE": k**-0.5, "PERIOD": period, "OF": of, **cut._asdict()}


def rotate_quantize_variant(
    of: str, arch: int, dtype: torch.dtype, shape: tuple[int, int], bits: int, group_size: int,
    scaled: bool = False,
) -> Variant:  # fmt: skip
    """What `rotate_quantize` compiles for rows of `shape`: their width, and the order of the base matrix."""
    k, m = shape
    cut = plan(k, m)
    types = {"codes": "*i8", "scales": "*fp32", "x": TYPES[dtype], "base": "*i8", "clip": "fp32"}
    constants = _constants(of, cut, k, bits, group_size, scaled)
    if scaled:
        types |= {"diagonal": "*fp32"}
    else:
        constants |= {"diagonal": None}
    name = f"{of + '_' if of else ''}hadamard_quantize_act {TYPES[dtype][1:]} {k} a{bits} group {group_size}"
    name += " diagonal" if scaled else ""
    return variant(name, _kernel, types, constants, cut.warps, matrix_units(arch, cut))
