"""Rows as wide as a vocabulary, cut into pieces at fixed places, which programs of their own go through.

A second launch puts together what they found, in the order of the pieces. So one row alone occupies a whole
GPU, and neither a piece nor an order depends on how many rows there are.
"""

# constants and loops of device code are Triton's own
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from qspec_kernels.backends.triton._rows import log2, row_sum
from qspec_kernels.backends.triton._sizes import cdiv, next_power_of_2

# elements of a piece
PIECE = 2048
WARPS = 4


def cut(n: int) -> dict[str, int]:
    """Constants of a row's width: how wide pieces are, how many there are, and the power of two above it."""
    piece = min(PIECE, next_power_of_2(n))
    pieces = cdiv(n, piece)
    return {"N": n, "PIECE": piece, "PIECES": pieces, "WIDE": next_power_of_2(pieces)}


@triton.jit
def running_sums(x):
    """x [N] -> the sums of x[0..i], [N]: neighbours are added, then pairs of them, as `row_sum` adds.

    What is left out of that tree counts as 0 in it. Rounding is monotone, so sums of what is not negative
    never fall, and where x is 0 they stay as they are. The last one is `row_sum`'s.
    """
    second = tl.reshape(tl.arange(0, 2), [1, 2, 1]) == 1
    total = x
    for level in tl.static_range(log2(x.shape[0])):
        left, right = tl.split(tl.reshape(total, [total.shape[0] // 2, 2]))
        halves = tl.reshape(x, [left.shape[0], 2, 2**level])
        x = tl.reshape(tl.where(second, left[:, None, None] + halves, halves), x.shape)
        total = left + right
    return x


@triton.jit
def total_of(x):
    """The last of the running sums of x [N]."""
    return tl.sum(row_sum(x[None, :]), 0)


@triton.jit
def crossing(x, before, threshold):
    """(i, before + x[0] + .. + x[i - 1]) for the first i where before + x[0] + .. + x[i] > threshold.

    x: float64 [N], not negative. `before` and the whole may have been added up in another order, by which the
    threshold is crossed; where these sums do not reach it, i is the last place with a number above 0.
    """
    place = tl.arange(0, x.shape[0])
    sums = before + running_sums(x)
    first = tl.min(tl.where(sums > threshold, place, x.shape[0]), 0)
    last = tl.max(tl.where(x > 0, place, 0), 0)
    index = tl.where(first < x.shape[0], first, last)
    # the sum of one number, as integers, whose order does not matter
    bits = tl.sum(tl.where(place == index - 1, sums.to(tl.int64, bitcast=True), 0), 0)
    return index, tl.where(index > 0, bits.to(tl.float64, bitcast=True), before)
