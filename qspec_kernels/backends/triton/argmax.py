"""The index of the highest value of each row.

A value and its index make one integer that orders as the pair does, ties to the lowest index: the highest of
each piece, then of those.
"""

# constants and loops of device code are Triton's own
# pyright: reportArgumentType=false, reportOperatorIssue=false

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._highest import NONE, key_of, place_of
from qspec_kernels.backends.triton._pieces import WARPS, cut
from qspec_kernels.backends.triton._rows import launch, variant
from qspec_kernels.backends.triton._variants import Variant


@triton.jit
def _highest_of_piece(
    keys, x, N: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Program (row, piece): keys int64 [M, PIECES]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    key = key_of(tl.load(x + row * N + at, mask=at < N, other=float("-inf")), at, N)
    tl.store(keys + row * PIECES + tl.program_id(1), tl.max(key, 0))


@triton.jit
def _highest_of_row(
    ids, keys, N: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Program (row): ids int64 [M]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDE)
    tl.store(ids + row, place_of(tl.max(tl.load(keys + row * PIECES + at, mask=at < PIECES, other=NONE), 0)))


def argmax(x: Tensor) -> Tensor:
    """x float32 [M, N] -> int64 [M], -1 where a row has a NaN or no finite maximum."""
    rows, n = x.shape
    constants = cut(n)
    keys = torch.empty(rows, constants["PIECES"], dtype=torch.int64, device=x.device)
    ids = torch.empty(rows, dtype=torch.int64, device=x.device)
    launch(_highest_of_piece, (rows, constants["PIECES"]), (keys, x), constants, WARPS)
    launch(_highest_of_row, (rows,), (ids, keys), constants, 1)
    return ids


def variants(arch: int) -> Iterator[Variant]:
    """The vocabularies of Llama 3 and Gemma 3."""
    del arch
    for n in (128256, 262144):
        types = {"keys": "*i64", "x": "*fp32"}
        yield variant(f"argmax pieces {n}", _highest_of_piece, types, cut(n), WARPS)
        types = {"ids": "*i64", "keys": "*i64"}
        yield variant(f"argmax row {n}", _highest_of_row, types, cut(n), 1)
