"""The normalised Hadamard transform of rows."""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._hadamard import Plan, matrix_units, plan, rotated
from qspec_kernels.backends.triton._interpreter import rounded
from qspec_kernels.backends.triton._rows import BF16, F32, TYPES, launch, variant
from qspec_kernels.backends.triton._sizes import cdiv
from qspec_kernels.backends.triton._variants import Variant


@triton.jit(do_not_specialize=["rows"])
def _kernel(
    out, x, base, diagonal, rows, SCALE: tl.constexpr, PERIOD: tl.constexpr, TRANSPOSE: tl.constexpr,
    M: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, D_TILE: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """Program (ROWS rows, tile of D)."""
    place = tl.arange(0, ROWS * P)[None, :]
    row = tl.program_id(0).to(tl.int64) * ROWS + place // P
    line = tl.program_id(1) * D_TILE + tl.arange(0, D_TILE)
    y = rotated(
        x, base, diagonal, row, rows, place % P, line, SCALE, PERIOD, TRANSPOSE, M, Q, P, ROWS, D_TILE, STEP,
    )  # fmt: skip
    at = row * (M * Q * P) + line[:, None] * P + place % P
    tl.store(out + at, rounded(y, x.dtype.element_ty), mask=(line[:, None] < M * Q) & (row < rows))


def hadamard(x: Tensor, base: Tensor, transpose: bool, diagonal: Tensor | None) -> Tensor:
    """x [M, W] -> kron(H_m, H_(W/m)) x / sqrt(W), with base = H_m, int8 [m, m]; in x's dtype.

    diagonal float32 [period * W] belongs to rows 0..period-1 of x and, from there on, again and again.
    """
    rows, width = x.shape
    out = torch.empty_like(x)
    cut = plan(width, len(base))
    period = 0 if diagonal is None else len(diagonal) // width
    grid = (cdiv(rows, cut.ROWS), cut.tiles)
    constants = _constants(cut, width, period, transpose)
    launch(_kernel, grid, (out, x, base, diagonal, rows), constants, cut.warps)
    return out


def _constants(cut: Plan, width: int, period: int, transpose: bool) -> dict[str, Any]:
    return {"SCALE": width**-0.5, "PERIOD": period, "TRANSPOSE": transpose, **cut._asdict()}


def variants(arch: int) -> Iterator[Variant]:
    """Hidden, head and intermediate sizes of Llama and Qwen models."""
    for dtype, width, m, period in (
        (F32, 128, 1, 0), (F32, 3584, 28, 0), (F32, 4096, 1, 0), (F32, 4096, 1, 1), (F32, 8192, 1, 0),
        (F32, 11008, 344, 0), (F32, 14336, 28, 0), (F32, 18944, 148, 0), (BF16, 4096, 1, 0),
        (BF16, 14336, 28, 0),
    ):  # fmt: skip
        cut = plan(width, m)
        types = {"out": TYPES[dtype], "x": TYPES[dtype], "base": "*i8", "rows": "i32"}
        constants = _constants(cut, width, period, False)
        if period:
            types |= {"diagonal": "*fp32"}
        else:
            constants |= {"diagonal": None}
        name = f"hadamard {TYPES[dtype][1:]} {width}{' diagonal' if period else ''}"
        yield variant(name, _kernel, types, constants, cut.warps, matrix_units(arch, cut))
