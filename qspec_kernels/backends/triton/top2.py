"""The two highest values of each row, and the index of the highest.

A value and its index make one integer that orders as the pair does: the two highest of each piece, then of
those.
"""

# constants and loops of device code are Triton's own
# pyright: reportArgumentType=false, reportOperatorIssue=false

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._highest import NONE, key_of, place_of, value_of
from qspec_kernels.backends.triton._pieces import WARPS, cut
from qspec_kernels.backends.triton._rows import launch, variant
from qspec_kernels.backends.triton._variants import Variant


@triton.jit
def _two_of_piece(
    keys, x, N: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Program (row, piece): keys int64 [M, PIECES, 2]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    key = key_of(tl.load(x + row * N + at, mask=at < N, other=float("-inf")), at, N)
    first = tl.max(key, 0)
    to = keys + (row * PIECES + tl.program_id(1)) * 2
    tl.store(to, first)
    tl.store(to + 1, tl.max(tl.where(key == first, NONE, key), 0))


@triton.jit
def _two_of_row(
    ids, values, keys, N: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Program (row): ids int64 [M], values [M, 2]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDE)
    firsts = tl.load(keys + (row * PIECES + at) * 2, mask=at < PIECES, other=NONE)
    seconds = tl.load(keys + (row * PIECES + at) * 2 + 1, mask=at < PIECES, other=NONE)
    first = tl.max(firsts, 0)
    # of the other pieces their first ones, of its own its second one
    second = tl.max(tl.where(firsts == first, seconds, firsts), 0)
    place = place_of(first)
    nan = float("nan")
    tl.store(ids + row, place)
    tl.store(values + row * 2, tl.where(place < 0, nan, value_of(first)))
    tl.store(values + row * 2 + 1, tl.where(place < 0, nan, value_of(second)))


def top2(x: Tensor) -> tuple[Tensor, Tensor]:
    """x float32 [M, N] -> int64 [M], float32 [M, 2]; -1 and NaN where a row has no finite maximum."""
    rows, n = x.shape
    constants = cut(n)
    keys = torch.empty(rows, constants["PIECES"], 2, dtype=torch.int64, device=x.device)
    ids = torch.empty(rows, dtype=torch.int64, device=x.device)
    values = torch.empty(rows, 2, device=x.device)
    launch(_two_of_piece, (rows, constants["PIECES"]), (keys, x), constants, WARPS)
    launch(_two_of_row, (rows,), (ids, values, keys), constants, 1)
    return ids, values


def variants(arch: int) -> Iterator[Variant]:
    """The vocabularies of Llama 3 and Gemma 3."""
    del arch
    for n in (128256, 262144):
        types = {"keys": "*i64", "x": "*fp32"}
        yield variant(f"top2 pieces {n}", _two_of_piece, types, cut(n), WARPS)
        types = {"ids": "*i64", "values": "*fp32", "keys": "*i64"}
        yield variant(f"top2 row {n}", _two_of_row, types, cut(n), 1)
