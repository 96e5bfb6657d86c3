"""Soft-max at a temperature.

Each piece is summed relative to its own highest value. The launch that writes the result first brings all
pieces of the row down to the highest of all, in every program alike.
"""

# constants and loops of device code are Triton's own
# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._pieces import WARPS, cut
from qspec_kernels.backends.triton._rows import launch, row_sum, variant
from qspec_kernels.backends.triton._variants import Variant


@triton.jit
def _exponential(x, highest, inverse):
    """exp((x - highest) / temperature); 0 for -inf, whatever the highest is. Infinity and NaN give NaN."""
    return tl.exp((x - tl.where(highest == float("-inf"), 0.0, highest)) * inverse)


@triton.jit
def _sum_of_piece(
    highest, sums, x, inverse, N: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Program (row, piece): the piece's highest value and its sum relative to that, each [M, PIECES]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * PIECE + tl.arange(0, PIECE)[None, :]
    value = tl.load(x + row * N + at, mask=at < N, other=float("-inf"))
    top = tl.max(value, 1)
    place = row * PIECES + tl.program_id(1) + tl.zeros([1], tl.int32)
    tl.store(highest + place, top)
    tl.store(sums + place, row_sum(_exponential(value, top[:, None], inverse)))


@triton.jit
def _normalised(
    out, highest, sums, x, inverse, N: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Program (row, piece)."""
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, WIDE)[None, :]
    tops = tl.load(highest + row * PIECES + piece, mask=piece < PIECES, other=float("-inf"))
    parts = tl.load(sums + row * PIECES + piece, mask=piece < PIECES, other=0.0)
    top = tl.max(tops, 1)[:, None]
    total = row_sum(parts * _exponential(tops, top, inverse))[:, None]
    at = tl.program_id(1) * PIECE + tl.arange(0, PIECE)[None, :]
    value = tl.load(x + row * N + at, mask=at < N, other=float("-inf"))
    # a total of 0, that of a row without a finite value, makes 0 * infinity, which is NaN
    factor = tl.div_rn(1.0, total)
    tl.store(out + row * N + at, _exponential(value, top, inverse) * factor, mask=at < N)


def softmax(x: Tensor, temperature: float) -> Tensor:
    """x float32 [M, N] -> float32 [M, N], NaN in rows with a NaN or without a finite maximum."""
    rows, n = x.shape
    constants = cut(n)
    highest, sums = (x.new_empty(rows, constants["PIECES"]) for _ in range(2))
    out = torch.empty_like(x)
    grid, inverse = (rows, constants["PIECES"]), 1 / temperature
    launch(_sum_of_piece, grid, (highest, sums, x, inverse), constants, WARPS)
    launch(_normalised, grid, (out, highest, sums, x, inverse), constants, WARPS)
    return out


def variants(arch: int) -> Iterator[Variant]:
    """The vocabularies of Llama 3 and Gemma 3."""
    del arch
    for n in (128256, 262144):
        types = dict.fromkeys(("highest", "sums", "x"), "*fp32") | {"inverse": "fp32"}
        yield variant(f"softmax pieces {n}", _sum_of_piece, types, cut(n), WARPS)
        yield variant(f"softmax row {n}", _normalised, {"out": "*fp32", **types}, cut(n), WARPS)
