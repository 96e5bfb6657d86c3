"""How a test finds out that a row of an op's result does not depend on the rows beside it."""

from collections.abc import Callable

import torch
from torch import Tensor

from qspec_kernels.formats import QuantizedActivation
from tests.kernels.cases import same_bits

TOTAL = 513

# What the native linears do with this many rows of x, with AVX-512:
# 1..8  each register tile: rows of x times 4 or (7, 8 rows) 3 weight rows of a dense weight, times 4 tiles
#       (1..4 rows), 3 (5) or 2 (6..8) of a packed one. From 5 on, dense kernels cut long K.
# 17    dense: 6 + 6 + 5 rows; packed: 8 + 8 + 1
# 64    dense: two blocks of 32 rows; the preparation of x is shared among threads
# 513   a last block of one row, which is still cut as the others are
COUNTS = [1, 2, 3, 4, 5, 6, 7, 8, 17, 64, TOTAL]

Rowwise = Callable[[Tensor], Tensor]


def numbers(activation: QuantizedActivation) -> Tensor:
    """Codes and scales side by side."""
    return torch.cat((activation.codes.to(activation.scales.dtype), activation.scales), 1)


def check_rows(op: Rowwise, x: Tensor) -> None:
    """Rows computed one call each are those of any larger call, at any place, beside any neighbours."""
    torch.set_num_threads(1)
    whole = op(x)
    for row in (0, 1, 7, 8, 100, 448, len(x) - 2, len(x) - 1):
        row = min(row, len(x) - 1)
        assert same_bits(op(x[row : row + 1]), whole[row : row + 1]), f"1 threads: row {row} alone"
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:65]
    neighbours = x[some]
    neighbours[1::2] *= 1e4
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in [count for count in COUNTS if count <= len(x)]:
            # the last rows, so that their places differ from those they have in the whole
            assert same_bits(op(x[-count:]), whole[-count:]), (
                f"{threads} threads: rows of a call with {count}"
            )
        assert same_bits(op(x[some]), whole[some]), f"{threads} threads: rows in another order"
        assert same_bits(op(neighbours)[::2], whole[some[::2]]), (
            f"{threads} threads: rows with other neighbours"
        )
