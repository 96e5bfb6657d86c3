"""Attention over a key-value cache, one token and one head at a time."""

import torch
from torch import Tensor


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """q [T, Hq, D], caches [B, Hkv, C, D] -> [T, Hq, D] in float64.

    Token t sees positions max(0, positions[t] - window + 1) .. positions[t] of cache row rows[t].
    """
    out = torch.empty(q.shape, dtype=torch.float64)
    heads_per_key = q.shape[1] // k_cache.shape[1]
    for token, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        seen = slice(0 if window is None else max(0, position - window + 1), position + 1)
        for head in range(q.shape[1]):
            keys = k_cache[row, head // heads_per_key, seen].double()
            values = v_cache[row, head // heads_per_key, seen].double()
            scores = keys @ q[token, head].double() * scale
            out[token, head] = torch.softmax(scores, dim=0) @ values
    return out
