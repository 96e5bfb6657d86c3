"""Rows of a table."""

import torch
from torch import Tensor


def embedding(table: Tensor, ids: Tensor, rounded: bool, dtype: torch.dtype) -> Tensor:
    """table [V, W], ids int64 [T] -> [T, W] in `dtype`, through bfloat16 if `rounded`."""
    rows = table[ids]
    return (rows.to(torch.bfloat16) if rounded else rows).to(dtype)
