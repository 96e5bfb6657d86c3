"""Launcher of draw_residual.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def draw_residual(
    p: Tensor, q: Tensor, uniforms: Tensor, p_rows: Tensor | None, q_rows: Tensor | None
) -> Tensor:
    """p float32 [R, N], q float32 [S, N], uniforms float64 [M], rows int64 [M] or None -> int64 [M]."""
    m, n = uniforms.shape[0], p.shape[1]
    ids = empty((m,), torch.int64)
    call("draw_residual", ids, p, p.shape[0], q, q.shape[0], uniforms, p_rows, q_rows, m, n, num_threads())
    return ids
