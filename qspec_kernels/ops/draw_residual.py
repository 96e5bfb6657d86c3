"""`draw_residual`: the token that replaces a refused draft."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register
from qspec_kernels.ops.draw import check_indices, check_inside, check_uniforms


def draw_residual(
    p: Float[Tensor, "r n"],
    q: Float[Tensor, "s n"],
    uniforms: Float64[Tensor, " m"],
    *,
    p_rows: Int64[Tensor, " m"] | None = None,
    q_rows: Int64[Tensor, " m"] | None = None,
) -> Int64[Tensor, " m"]:
    """`draw` from max(p - q, 0), the residual of speculative sampling (arXiv 2211.17192), without storing it.

    Where p exceeds q nowhere, the index is drawn from p: the limit for q that is p up to rounding.

    Parameters
    ----------
    p, q
        Distributions, float32 or float64.
    uniforms
        Numbers in [0, 1).
    p_rows, q_rows
        The rows of p and q that belong to each draw, None for row i of draw i. -1 in q_rows: p alone.

    Raises
    ------
    UsageError
        If shapes, dtypes or devices do not fit each other, or (on CPU) an index lies outside.
    """
    for name, tensor, rows in (("p", p, p_rows), ("q", q, q_rows)):
        _check.unrounded(name, tensor)
        _check.axes(name, tensor, "rows", "indices")
        check_uniforms(uniforms, tensor)
        check_indices(f"{name}_rows", rows, uniforms, name, tensor)
        if rows is None:
            _check.shape(
                "uniforms", uniforms, tensor.shape[:1], f"one number per row of {name}, or {name}_rows"
            )
    if p.shape[1] != q.shape[1]:
        raise UsageError(
            f"p has {p.shape[1]} indices and q has {q.shape[1]}; expected one number",
            "Distributions over two vocabularies have no difference; widen the smaller with zeros.",
        )
    return _draw_residual(p, q, uniforms, p_rows, q_rows)


def _op(p: Tensor, q: Tensor, uniforms: Tensor, p_rows: Tensor | None, q_rows: Tensor | None) -> Tensor:
    check_inside("p_rows", p_rows, 0, p.shape[0])
    check_inside("q_rows", q_rows, -1, q.shape[0])
    indices = [None if given is None else given.contiguous() for given in (p_rows, q_rows)]
    function = dispatch.find("draw_residual", p.device, torch.promote_types(p.dtype, q.dtype))
    return function(p.contiguous(), q.contiguous(), uniforms.contiguous(), *indices)


_draw_residual = register(
    "draw_residual(Tensor p, Tensor q, Tensor uniforms, Tensor? p_rows, Tensor? q_rows) -> Tensor",
    _op,
    lambda p, q, uniforms, p_rows, q_rows: uniforms.new_empty(uniforms.shape, dtype=torch.int64),
)
