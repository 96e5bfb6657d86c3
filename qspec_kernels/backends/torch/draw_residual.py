"""An index from what one distribution has more than another."""

import torch
from torch import Tensor

from qspec_kernels.backends.torch._draw import draw_or_whole


def draw_residual(
    p: Tensor, q: Tensor, uniforms: Tensor, p_rows: Tensor | None, q_rows: Tensor | None
) -> Tensor:
    """p [R, N], q [S, N], uniforms float64 [M], rows int64 [M] or None, -1 for no q -> int64 [M]."""
    p = p if p_rows is None else p[p_rows]
    if q_rows is None:
        left = (p - q).clamp_(min=0)
    else:
        left, some = p.clone(), (q_rows >= 0).nonzero()[:, 0]
        left[some] = (p[some] - q[q_rows[some]]).clamp_(min=0)
    return draw_or_whole(torch.where(left > 0, left, 0.0), p, uniforms)
