"""An index from each row of weights."""

from torch import Tensor

from qspec_kernels.backends.torch._draw import draw_or_whole


def draw(weights: Tensor, uniforms: Tensor, rows: Tensor | None, without: Tensor | None) -> Tensor:
    """weights [R, N], uniforms float64 [M], rows and without int64 [M] or None -> int64 [M]."""
    whole = left = weights if rows is None else weights[rows]
    if without is not None:
        at = without.clamp(min=0)[:, None]
        # a weight stays what it is where none is left out
        left = whole.scatter(1, at, whole.gather(1, at).masked_fill(without[:, None] >= 0, 0.0))
    return draw_or_whole(left, whole, uniforms)
