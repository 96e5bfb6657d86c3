"""`argmax`: the greedy choice."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register


def argmax(logits: Float[Tensor, "*batch n"]) -> Int64[Tensor, "*batch"]:
    """The index of the highest value of each row, the lowest of several.

    -1 where there is no such choice: the row holds a NaN, or its highest value is infinite.

    Raises
    ------
    UsageError
        If the dtype is neither float32 nor float64.

    Examples
    --------
    >>> import torch
    >>> argmax(torch.tensor([[1.0, 3.0, 3.0], [0.0, torch.nan, 1.0]])).tolist()
    [1, -1]
    """
    _check.unrounded("logits", logits)
    return _argmax(logits)


def _op(logits: Tensor) -> Tensor:
    rows = logits.reshape(-1, logits.shape[-1]).contiguous()
    return dispatch.find("argmax", logits.device, logits.dtype)(rows).view(logits.shape[:-1])


_argmax = register(
    "argmax(Tensor logits) -> Tensor",
    _op,
    lambda logits: logits.new_empty(logits.shape[:-1], dtype=torch.int64),
)
