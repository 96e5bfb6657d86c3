"""The index of the highest value of each row."""

import torch
from torch import Tensor


def argmax(x: Tensor) -> Tensor:
    """x [M, N] -> int64 [M], -1 where a row has a NaN or no finite maximum."""
    highest, ids = x.max(1)
    return torch.where(highest.isfinite(), ids, -1)
