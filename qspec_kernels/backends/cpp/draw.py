"""Launcher of draw.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def draw(weights: Tensor, uniforms: Tensor, rows: Tensor | None, without: Tensor | None) -> Tensor:
    """weights float32 [R, N], uniforms float64 [M], rows and without int64 [M] or None -> int64 [M]."""
    count, n = weights.shape
    m = uniforms.shape[0]
    ids = empty((m,), torch.int64)
    call("draw", ids, weights, count, uniforms, rows, without, m, n, num_threads())
    return ids
