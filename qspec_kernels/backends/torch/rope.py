"""Rotary position embedding, halves paired."""

import torch
from torch import Tensor


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor, scaling: float) -> Tensor:
    """x [T, H, D], positions int32 [T], inv_freq float32 [D / 2] -> [T, H, D] in x's dtype."""
    work = torch.promote_types(x.dtype, torch.float32)
    angles = (positions.float()[:, None] * inv_freq).to(work)[:, None]
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    first, second = x.to(work).chunk(2, 2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), 2).to(x.dtype)
