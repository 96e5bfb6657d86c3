"""`softmax`: from logits to the distribution that tokens are drawn from."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register


def softmax(logits: Float[Tensor, "*batch n"], temperature: float = 1.0) -> Float[Tensor, "*batch n"]:
    """exp((logits - highest) / temperature), normalised row by row; -inf gives exactly 0.

    A row that holds a NaN, or whose highest value is infinite, becomes NaN throughout.

    Parameters
    ----------
    logits
        float32 or float64.
    temperature
        One that is too small for the dtype counts as the smallest that it holds.

    Raises
    ------
    UsageError
        If the dtype is another, or the temperature is not a finite number above 0.
    """
    _check.unrounded("logits", logits)
    if not 0 < temperature < math.inf:
        raise UsageError(
            f"temperature is {temperature}; expected a finite number above 0",
            "At temperature 0 the choice is argmax.",
        )
    return _softmax(logits, temperature)


def _op(logits: Tensor, temperature: float) -> Tensor:
    rows = logits.reshape(-1, logits.shape[-1]).contiguous()
    held = torch.finfo(logits.dtype)
    temperature = min(max(temperature, held.tiny), held.max)
    return dispatch.find("softmax", logits.device, logits.dtype)(rows, temperature).view(logits.shape)


_softmax = register(
    "softmax(Tensor logits, float temperature) -> Tensor",
    _op,
    lambda logits, temperature: torch.empty_like(logits, memory_format=torch.contiguous_format),
)
