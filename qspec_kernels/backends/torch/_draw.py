"""Inverse-CDF sampling, which draw and draw_residual share."""

import torch
from torch import Tensor


def draw_or_whole(weights: Tensor, whole: Tensor, uniforms: Tensor) -> Tensor:
    """Draw from weights [M, N], or from `whole` where they have no mass; -1 where neither has."""
    has_mass = weights.sum(1, keepdim=True) > 0
    cumulative = torch.where(has_mass, weights, whole).cumsum(1, dtype=torch.float64)
    total = cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    return torch.where((total > 0) & total.isfinite(), ids, -1)[:, 0]
