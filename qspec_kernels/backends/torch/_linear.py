"""Linears with packed weights, shared by the formats.

What a format brings is a function of `_weights`: (data, scales, k, group_size, dtype) -> `Rows`, and these
are (start, stop) -> integers [n, k] and scales [n, groups] of those weight rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from qspec_kernels.backends.torch._matmul import PIECE, blocked_matmul

Rows = Callable[[int, int], tuple[Tensor, Tensor]]
RowsOf = Callable[[Tensor, Tensor, int, int, torch.dtype], Rows]

_EXACT_FLOAT32 = 1 << 24
_LARGEST_PRODUCT = 127 * 12


def float_linear(
    rows_of: RowsOf, x: Tensor, weight: tuple[Tensor, Tensor], bias: Tensor | None, shape: tuple[int, int],
    group_size: int,
) -> Tensor:  # fmt: skip
    """x [M, K] rounded to bfloat16 (float64 is not) times the dequantised weight -> [M, N] in x's dtype."""
    n, k = shape
    rounded = x if x.dtype == torch.float64 else x.bfloat16().float()
    rows = rows_of(*weight, k, group_size, rounded.dtype)

    def weight_rows(start: int, stop: int) -> Tensor:
        codes, scales = rows(start, stop)
        # 4 bits times a scale of at most 11: exact
        return codes.mul_(scales.repeat_interleave(group_size, 1)[:, :k])

    return blocked_matmul(rounded, n, weight_rows, bias).to(x.dtype)


def integer_linear(
    rows_of: RowsOf, codes: Tensor, act_scales: Tensor, weight: tuple[Tensor, Tensor], bias: Tensor | None,
    shape: tuple[int, int], group_size: int,
) -> Tensor:  # fmt: skip
    """codes int8 [M, K], act_scales [M, A] -> [M, N] in the scales' dtype.

    Sums of integers below 2^24 are exact in float32 in any order, which makes a float product the fast way.
    """
    (n, k), m = shape, codes.shape[0]
    rows = rows_of(*weight, k, group_size, act_scales.dtype)
    exact = torch.float32 if group_size * _LARGEST_PRODUCT < _EXACT_FLOAT32 else torch.float64
    # [groups, M, group_size], the last group filled up with zeros
    grouped = F.pad(codes, (0, -k % group_size)).to(exact).unflatten(1, (-1, group_size)).transpose(0, 1)
    act = act_scales.t().unsqueeze(2)
    out = act_scales.new_zeros(m, n)
    # the sums of all groups of a piece exist at once: [groups, M, piece]
    piece = max(1, PIECE // max(k, m * grouped.shape[0]))
    for start in range(0, n, piece):
        stop = min(start + piece, n)
        codes_of_rows, scales = rows(start, stop)
        padded = F.pad(codes_of_rows.to(exact), (0, -k % group_size)).unflatten(1, (-1, group_size))
        sums = torch.bmm(grouped, padded.permute(1, 2, 0)).to(out.dtype)
        acc = out[:, start:stop]
        for term in sums.mul_(scales.t().unsqueeze(1) * act):
            acc += term
    return out if bias is None else out.add_(bias)


def plus(residual: Tensor | None, out: Tensor) -> Tensor:
    """The residual, of the output's dtype, added to an output that has been rounded."""
    return out if residual is None else residual + out
