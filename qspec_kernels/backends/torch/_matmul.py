"""Matrix products whose rows do not depend on how many rows there are, nor on the number of threads.

A BLAS chooses its kernels and its order of summation by the shapes it is given, by how rows are aligned, and
by the number of threads. So all products here are of blocks of one shape: `ROWS` rows, zero-padded, by at
most `CHUNK` of K, padded to `LANES`, by whole `LANES` of the weight's rows. Chunks are added in order.

`CHUNK` is small enough for a sum to be one chain from its first product to its last, whatever the threads:
MKL cuts chains of 192 in two, or not, as the number of threads suits it (seen on Intel; 160 were never cut).
And with fewer than four rows of the weight it takes kernels whose order depends on the row of x.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

ROWS = 8
CHUNK = 128
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
    out = x.new_zeros(m + -m % ROWS, n + -n % LANES)
    piece = max(1, PIECE // max(k, 1) // LANES) * LANES
    for start in range(0, n, piece):
        stop = min(start + piece, n)
        weight = F.pad(weight_rows(start, stop), (0, -k % LANES, 0, -(stop - start) % LANES)).t().split(CHUNK)
        for block, sums in zip(blocks, out[:, start : start + piece].split(ROWS), strict=True):
            for x_chunk, weight_chunk in zip(block.split(CHUNK, 1), weight, strict=True):
                sums.addmm_(x_chunk, weight_chunk)
    out = out[:m, :n].contiguous()
    return out if bias is None else out.add_(bias)
