"""From logits to a distribution, and from a distribution and one uniform number to a token."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from qspec_decode.noise import Seed
from qspec_kernels import QSpecError, UsageError


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a row ends. Names follow transformers and vLLM.

    Parameters
    ----------
    temperature
        0 is greedy: the highest logit, ties to the lowest id.
    top_k
        Keep the k most probable ids (ties with the k-th are kept); 0 keeps all.
    top_p
        Keep the smallest set of most probable ids whose mass reaches top_p; 1 keeps all.
    seed
        See `qspec_decode.noise.row_seeds`.
    max_new_tokens
        Tokens generated per row at most.
    eos_token_id
        Ids that end a row, kept as its last token. None takes the model's own, () has none.

    Raises
    ------
    UsageError
        A value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: Seed = None
    max_new_tokens: int = 128
    eos_token_id: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(
                f"temperature is {self.temperature}; expected a finite number >= 0",
                "0 decodes greedily, 1 samples from the model's own distribution.",
            )
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; expected an integer >= 0", "0 keeps every token.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; expected 0 < top_p <= 1", "1 keeps every token.")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")

    @property
    def greedy(self) -> bool:
        """True at temperature 0."""
        return self.temperature == 0


def most_probable(logits: Float[Tensor, "*n vocab"]) -> Int64[Tensor, "*n"]:
    """The id of the highest logit, ties to the lowest id.

    Raises
    ------
    QSpecError
        As `probabilities`.
    """
    highest, ids = logits.max(-1)
    _check_finite(highest)
    return ids


def _check_finite(highest: Tensor) -> None:
    if not bool(highest.isfinite().all()):
        raise QSpecError(
            "the model returned logits that are NaN or without a finite maximum; expected finite ones",
            "Look for weights that are not finite or that overflow, or run the target in another precision.",
        )


def probabilities(logits: Float[Tensor, "*n vocab"], params: SamplingParams) -> Float[Tensor, "*n vocab"]:
    """The distribution that tokens are drawn from: temperature, then top-k, then top-p, as in transformers.

    Filters act on what the earlier ones left. Only for temperature > 0.

    Raises
    ------
    QSpecError
        Logits with a NaN, or without a finite maximum: there is no distribution to draw from.
    """
    # the maximum is taken out first: at a tiny temperature the quotient would overflow
    highest = logits.amax(-1, keepdim=True)
    _check_finite(highest)
    scaled = (logits - highest) / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        kth = scaled.topk(params.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    probs = scaled.softmax(-1)
    if params.top_p < 1:
        ordered, ids = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1, dtype=torch.float64) - ordered
        ordered = ordered.masked_fill(before >= params.top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, ids, ordered)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def draw(weights: Float[Tensor, "*n vocab"], uniforms: Float64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """Inverse-CDF sampling: the first id whose cumulative weight exceeds uniform * total.

    Weights need not be normalised. An id of weight 0 is never drawn.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    threshold = uniforms[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
