"""Root mean square normalisation."""

import torch
from torch import Tensor


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [M, K], weight [K] in the dtype to compute in -> [M, K] in x's dtype."""
    work = x.to(weight.dtype)
    # a single long row would be summed by several threads, each its part; two rows are not
    squares = work.square() if len(x) != 1 else work.square().expand(2, -1)
    mean = squares.mean(1, keepdim=True)[: len(x)]
    return (work * torch.rsqrt(mean + eps) * weight).to(x.dtype)
