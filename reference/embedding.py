"""Rows of a table."""

import torch
from torch import Tensor


def embedding(table: Tensor, ids: Tensor, rounded: bool = False) -> Tensor:
    """table [V, W], ids [T] -> [T, W] in float64, through bfloat16 if `rounded`."""
    out = torch.empty(len(ids), table.shape[1], dtype=torch.float64)
    for token, entry in enumerate(ids.tolist()):
        out[token] = table[entry].bfloat16().double() if rounded else table[entry].double()
    return out
