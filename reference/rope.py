"""Rotary position embedding."""

import torch
from torch import Tensor


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor, attention_scaling: float = 1.0) -> Tensor:
    """x [T, H, D]: pairs (i, i + D/2) turned by position * inv_freq[i].

    The angle is a float32 product, as every implementation of the models has it; the rest is float64.
    """
    half = x.shape[2] // 2
    out = torch.empty(x.shape, dtype=torch.float64)
    for token, position in enumerate(positions.tolist()):
        angle = (torch.tensor(position, dtype=torch.float32) * inv_freq.float()).double()
        cos, sin = angle.cos() * attention_scaling, angle.sin() * attention_scaling
        first, second = x[token, :, :half].double(), x[token, :, half:].double()
        out[token, :, :half] = first * cos - second * sin
        out[token, :, half:] = second * cos + first * sin
    return out
