"""Inverse-CDF sampling, which draw and draw_residual share: in float64, sums of pieces, then one piece.

Running sums go over the sums of pieces; then, in the piece that crosses the threshold, over the sums of its
lines; then over the values of the line that does. An index of weight 0 never moves them, and so is never
drawn.
"""

# constants and loops of device code are Triton's own
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._pieces import WARPS, crossing, cut, total_of
from qspec_kernels.backends.triton._rows import launch, row_sum, variant
from qspec_kernels.backends.triton._variants import Variant

# elements of a piece that are gone through one by one
LINE = 64


@triton.jit
def _weights(p, q, p_rows, q_rows, without, drawn, at, N: tl.constexpr):
    """Weights `at` of a draw: those it is from, and those it is from where these have no mass; float64."""
    p_row = drawn
    if p_rows is not None:
        p_row = tl.load(p_rows + drawn)
    whole = tl.load(p + p_row * N + at, mask=at < N, other=0.0)
    left = whole
    if q is not None:
        q_row = drawn
        if q_rows is not None:
            q_row = tl.load(q_rows + drawn)
        less = whole - tl.load(q + q_row * N + at, mask=(at < N) & (q_row >= 0), other=0.0)
        left = tl.where((less > 0) | (q_row < 0), less, 0.0)
    if without is not None:
        left = tl.where(at == tl.load(without + drawn), 0.0, whole)
    return left.to(tl.float64), whole.to(tl.float64)


@triton.jit
def _is_mass(total):
    return (total > 0) & (total < float("inf"))


@triton.jit
def _sums_of_piece(
    sums, p, q, p_rows, q_rows, without, SETS: tl.constexpr, LINE: tl.constexpr, N: tl.constexpr,
    PIECE: tl.constexpr, PIECES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (draw, piece): sums float64 [M, SETS, PIECES], of both weights where they may differ."""
    drawn = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * PIECE + tl.arange(0, PIECE)[None, :]
    left, whole = _weights(p, q, p_rows, q_rows, without, drawn, at, N)
    place = drawn * (SETS * PIECES) + tl.program_id(1) + tl.zeros([1], tl.int32)
    tl.store(sums + place, row_sum(left))
    if SETS == 2:
        tl.store(sums + PIECES + place, row_sum(whole))


@triton.jit
def _index_of_row(
    ids, sums, uniforms, p, q, p_rows, q_rows, without, SETS: tl.constexpr, LINE: tl.constexpr,
    N: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (draw): ids int64 [M]."""
    drawn = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, WIDE)
    sums += drawn * (SETS * PIECES) + part
    parts = tl.load(sums, mask=part < PIECES, other=0.0)
    has_mass = _is_mass(total_of(parts))
    if SETS == 2:
        parts = tl.where(has_mass, parts, tl.load(sums + PIECES, mask=part < PIECES, other=0.0))
    total = total_of(parts)
    threshold = tl.load(uniforms + drawn) * total

    piece, before = crossing(parts, 0.0, threshold)
    lines = tl.arange(0, PIECE // LINE)[:, None] * LINE + tl.arange(0, LINE)[None, :]
    left, whole = _weights(p, q, p_rows, q_rows, without, drawn, piece * PIECE + lines, N)
    line, before = crossing(row_sum(tl.where(has_mass, left, whole)), before, threshold)
    start = piece * PIECE + line * LINE
    left, whole = _weights(p, q, p_rows, q_rows, without, drawn, start + tl.arange(0, LINE), N)
    place, before = crossing(tl.where(has_mass, left, whole), before, threshold)
    tl.store(ids + drawn, tl.where(_is_mass(total), start + place, -1).to(tl.int64))


def draw_index(
    p: Tensor, q: Tensor | None, uniforms: Tensor, p_rows: Tensor | None, q_rows: Tensor | None,
    without: Tensor | None,
) -> Tensor:  # fmt: skip
    """The launches that the ops share: from p, less q or less one index, float32 [., N] -> int64 [M]."""
    draws = len(uniforms)
    constants = _constants(p.shape[1], q is not None or without is not None)
    sums = torch.empty(draws, constants["SETS"] * constants["PIECES"], dtype=torch.float64, device=p.device)
    ids = torch.empty(draws, dtype=torch.int64, device=p.device)
    weights = p, q, p_rows, q_rows, without
    launch(_sums_of_piece, (draws, constants["PIECES"]), (sums, *weights), constants, WARPS)
    launch(_index_of_row, (draws,), (ids, sums, uniforms, *weights), constants, WARPS)
    return ids


def _constants(n: int, two: bool) -> dict[str, Any]:
    pieces = cut(n)
    return {"SETS": 2 if two else 1, "LINE": min(LINE, pieces["PIECE"]), **pieces}


def draw_variants(op: str, n: int, *given: str) -> list[Variant]:
    """What `draw_index` compiles where of q, p_rows, q_rows and without those are given."""
    kinds = {"q": "*fp32", "p_rows": "*i64", "q_rows": "*i64", "without": "*i64"}
    types = {"p": "*fp32", **{name: kinds[name] for name in given}}
    constants = _constants(n, "q" in given or "without" in given)
    constants |= dict.fromkeys(kinds.keys() - set(given))
    sums, ids = {"sums": "*fp64", **types}, {"ids": "*i64", "sums": "*fp64", "uniforms": "*fp64", **types}
    name = " ".join((str(n), *given))
    return [
        variant(f"{op} pieces {name}", _sums_of_piece, sums, constants, WARPS),
        variant(f"{op} row {name}", _index_of_row, ids, constants, WARPS),
    ]
