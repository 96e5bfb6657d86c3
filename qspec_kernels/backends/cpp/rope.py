"""Launcher of rope.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor, scaling: float) -> Tensor:
    """x [T, H, D], positions int32 [T], inv_freq float32 [D / 2] -> [T, H, D] in x's dtype."""
    tokens, heads, dim = x.shape
    out = empty((tokens, heads, dim), x.dtype)
    call(
        "rope",
        out,
        x,
        x.dtype == torch.bfloat16,
        positions,
        inv_freq,
        float(scaling),
        tokens,
        heads,
        dim,
        num_threads(),
    )
    return out
