"""Soft-max at a temperature."""

import torch
from torch import Tensor


def softmax(x: Tensor, temperature: float) -> Tensor:
    """x [M, N] -> [M, N], NaN in rows with a NaN or without a finite maximum."""
    highest = x.amax(1, keepdim=True)
    # relative to the highest, for a small temperature would overflow it
    probs = ((x - highest) / temperature).softmax(1)
    return probs.masked_fill_(~highest.isfinite(), torch.nan)
