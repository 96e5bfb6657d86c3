"""`draw`: a random index for each row of weights, by one given uniform number."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register


def draw(
    weights: Float[Tensor, "r n"],
    uniforms: Float64[Tensor, " m"],
    *,
    rows: Int64[Tensor, " m"] | None = None,
    without: Int64[Tensor, " m"] | None = None,
) -> Int64[Tensor, " m"]:
    """Inverse-CDF sampling: the first index whose running sum of weights exceeds uniform * sum, in float64.

    Weights are not negative, and need not be normalised. An index of weight 0 is never drawn. -1 where the
    weights have no finite sum above 0.

    Parameters
    ----------
    weights
        float32 or float64.
    uniforms
        Numbers in [0, 1).
    rows
        The row of weights that each index is drawn from; None for row i of draw i.
    without
        An index of each draw whose weight counts as 0, or -1. Where nothing else has weight it counts after
        all.

    Raises
    ------
    UsageError
        If shapes, dtypes or devices do not fit each other, or (on CPU) an index lies outside.

    Examples
    --------
    >>> import torch
    >>> uniforms = torch.tensor([0.2, 0.3], dtype=torch.float64)
    >>> draw(torch.tensor([[1.0, 0.0, 3.0]]), uniforms, rows=torch.tensor([0, 0])).tolist()
    [0, 2]
    """
    _check.unrounded("weights", weights)
    _check.axes("weights", weights, "rows", "indices")
    check_uniforms(uniforms, weights)
    check_indices("rows", rows, uniforms, "weights", weights)
    check_indices("without", without, uniforms, "weights", weights)
    if rows is None:
        _check.shape("uniforms", uniforms, weights.shape[:1], "one number per row, or rows")
    return _draw(weights, uniforms, rows, without)


def check_uniforms(uniforms: Tensor, weights: Tensor) -> None:
    """Raise a UsageError unless there is a float64 number for each draw."""
    _check.axes("uniforms", uniforms, "draws")
    _check.same_device("uniforms", uniforms, "weights", weights)
    if uniforms.dtype != torch.float64:
        raise UsageError(
            f"uniforms is {uniforms.dtype}; expected float64",
            "A number with 24 bits would not reach all of a large vocabulary.",
        )


def check_indices(name: str, indices: Tensor | None, uniforms: Tensor, of: str, weights: Tensor) -> None:
    """Raise a UsageError unless `indices`, if there are any, are int64 and one per draw."""
    if indices is None:
        return
    _check.same_device(name, indices, of, weights)
    _check.shape(name, indices, uniforms.shape, "one per number in uniforms")
    if indices.dtype != torch.int64:
        raise UsageError(f"{name} is {indices.dtype}; expected int64", f"Convert it: {name}.long().")


def check_inside(name: str, indices: Tensor | None, least: int, stop: int) -> None:
    """Raise a UsageError unless all lie in least..stop-1; only on CPU, elsewhere looking would wait."""
    if indices is None or indices.device.type != "cpu" or not indices.numel():
        return
    low, high = (int(end) for end in indices.aminmax())
    if low < least or high >= stop:
        raise UsageError(
            f"{name} holds {low if low < least else high}; expected {least}..{stop - 1}",
            "They count from 0; only where it says so does -1 stand for none.",
        )


def _op(weights: Tensor, uniforms: Tensor, rows: Tensor | None, without: Tensor | None) -> Tensor:
    check_inside("rows", rows, 0, weights.shape[0])
    check_inside("without", without, -1, weights.shape[1])
    indices = [None if given is None else given.contiguous() for given in (rows, without)]
    function = dispatch.find("draw", weights.device, weights.dtype)
    return function(weights.contiguous(), uniforms.contiguous(), *indices)


_draw = register(
    "draw(Tensor weights, Tensor uniforms, Tensor? rows, Tensor? without) -> Tensor",
    _op,
    lambda weights, uniforms, rows, without: uniforms.new_empty(uniforms.shape, dtype=torch.int64),
)
