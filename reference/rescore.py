"""The best logits, computed again."""

import torch
from torch import Tensor

from reference.linear import linear


def best(logits: Tensor, count: int) -> list[int]:
    """Ids of the `count` largest of logits [vocab], the largest first, ties to the lowest id, -inf never."""
    order = sorted(range(len(logits)), key=lambda token: -float(logits[token]))
    return [token for token in order[:count] if logits[token] > -torch.inf]


def rescore(logits: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> Tensor:
    """logits [M, N] with the best of each row replaced by the linear of x [M, K], in float64.

    x is rounded to bfloat16 before, as a linear with bfloat16 weights rounds it.
    """
    out, exact = logits.double(), linear(x.bfloat16(), weight, bias)
    for row in range(len(logits)):
        for token in best(logits[row], count):
            out[row, token] = exact[row, token]
    return out
