"""`top2`: the greedy choice, and how clear it was."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register


def top2(logits: Float[Tensor, "*batch n"]) -> tuple[Int64[Tensor, "*batch"], Float[Tensor, "*batch 2"]]:
    """`argmax`, and the two highest values of each row in logits' dtype, the highest first.

    Where `argmax` is -1 they are NaN. The second of a row of one value is -inf.

    Raises
    ------
    UsageError
        If the dtype is neither float32 nor float64.

    Examples
    --------
    >>> import torch
    >>> ids, values = top2(torch.tensor([[1.0, 3.0, 2.5], [0.0, torch.nan, 1.0]]))
    >>> ids.tolist(), values.tolist()
    ([1, -1], [[3.0, 2.5], [nan, nan]])
    """
    _check.unrounded("logits", logits)
    return _top2(logits)


def _op(logits: Tensor) -> tuple[Tensor, Tensor]:
    rows = logits.reshape(-1, logits.shape[-1]).contiguous()
    ids, values = dispatch.find("top2", logits.device, logits.dtype)(rows)
    return ids.view(logits.shape[:-1]), values.view(*logits.shape[:-1], 2)


_top2 = register(
    "top2(Tensor logits) -> (Tensor, Tensor)",
    _op,
    lambda logits: (
        logits.new_empty(logits.shape[:-1], dtype=torch.int64),
        logits.new_empty((*logits.shape[:-1], 2)),
    ),
)
