"""Matrix products whose rows do not depend on how many rows there are, nor on the number of threads.

A BLAS chooses its kernels and its order of summation by the shapes it is given, and by how rows are aligned.
So all products here are of blocks of one shape: `ROWS` rows, zero-padded, by at most `CHUNK` of K, padded to
`LANES`. Chunks are added in order. `CHUNK` is small enough for threads never to share one sum.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

ROWS = 8
CHUNK = 256
LANES = 32

# elements of the weight that are widened at a time: a few MiB, whatever the size of the weight
PIECE = 1 << 20


def blocked_matmul(
    x: Tensor, n: int, weight_rows: Callable[[int, int], Tensor], bias: Tensor | None
) -> Tensor:
    """x [M, K] times a weight [n, K] transposed, plus bias, in x's dtype.

    `weight_rows(start, stop)` gives those rows of the weight in x's dtype; each is asked for once.
    """
    m, k = x.shape
    blocks = F.pad(x, (0, -k % LANES, 0, -m % ROWS)).split(ROWS)
    out = x.new_zeros(m + -m % ROWS, n)
    piece = max(LANES, PIECE // max(k, 1))
    for start in range(0, n, piece):
        stop = min(start + piece, n)
        weight = F.pad(weight_rows(start, stop), (0, -k % LANES)).t().split(CHUNK)
        for block, sums in zip(blocks, out[:, start:stop].split(ROWS), strict=True):
            for x_chunk, weight_chunk in zip(block.split(CHUNK, 1), weight, strict=True):
                sums.addmm_(x_chunk, weight_chunk)
    return out[:m] if bias is None else out[:m].add_(bias)
