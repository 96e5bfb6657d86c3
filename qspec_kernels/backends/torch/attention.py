"""Attention in key blocks of fixed size at absolute positions.

Every (token, key head) is a product of its own, of fixed shape, so a token's result depends on nothing but
its query and its keys. Blocks beyond a token's position are left out for that token.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64
LANES = 16

# tokens taken at a time: the keys and values of one block are gathered for each of them
TOKENS = 128


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    scale: float,
    window: int,
) -> Tensor:
    """q [T, Hq, D], caches [B, Hkv, C, D], rows and positions int32 [T] -> [T, Hq, D] in q's dtype."""
    parts = zip(q.split(TOKENS), rows.long().split(TOKENS), positions.long().split(TOKENS), strict=True)
    return torch.cat([_attend(*part, (k_cache, v_cache), scale, window) for part in parts])


def _attend(
    q: Tensor, rows: Tensor, positions: Tensor, caches: tuple[Tensor, Tensor], scale: float, window: int
) -> Tensor:
    (tokens, q_heads, d), heads = q.shape, caches[0].shape[1]
    if not tokens:
        return torch.empty_like(q)
    work = torch.promote_types(torch.promote_types(q.dtype, caches[0].dtype), torch.float32)
    # [T * Hkv, queries per key head, D], features padded so that all rows are aligned alike
    query = F.pad(q.to(work), (0, -d % LANES)).view(tokens * heads, q_heads // heads, -1)
    first = torch.zeros_like(positions) if window < 0 else (positions - window + 1).clamp(min=0)
    top = query.new_full((tokens * heads, q_heads // heads, 1), -torch.inf)
    total = torch.zeros_like(top)
    out = torch.zeros_like(query)
    for start in range(int(first.min()) // BLOCK * BLOCK, int(positions.max()) + 1, BLOCK):
        slots = torch.arange(start, start + BLOCK, device=q.device)
        seen = (slots <= positions[:, None]) & (slots >= first[:, None])
        # what a token does not see is zeroed, not only masked: it may be anything, NaN included
        keys, values = (_gather(cache, rows, start, seen, work) for cache in caches)
        hidden = ~seen.repeat_interleave(heads, 0)[:, None]
        scores = torch.bmm(query, keys.transpose(1, 2)).mul_(scale).masked_fill_(hidden, -torch.inf)
        touched = seen.any(1).repeat_interleave(heads)[:, None, None]
        new_top = torch.where(touched, torch.maximum(top, scores.amax(2, keepdim=True)), top)
        weights = torch.exp(scores - new_top)
        decay = torch.exp(top - new_top)
        # a token that sees nothing here keeps its sums untouched: even adding zero changes -0
        total = torch.where(touched, total * decay + weights.sum(2, keepdim=True), total)
        out = torch.where(touched, out * decay + torch.bmm(weights, values), out)
        top = new_top
    return (out / total).view(tokens, q_heads, -1)[..., :d].to(q.dtype)


def _gather(cache: Tensor, rows: Tensor, start: int, seen: Tensor, work: torch.dtype) -> Tensor:
    """Keys or values from `start` of each token's row, zero where not seen: [T * Hkv, BLOCK, D]."""
    block = cache[:, :, start : start + BLOCK][rows].to(work)
    block = F.pad(block, (0, -block.shape[3] % LANES, 0, BLOCK - block.shape[2]))
    return block.masked_fill_(~seen[:, None, :, None], 0.0).flatten(0, 1)
