"""From logits to a distribution, and from a distribution and one uniform number to a token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from qspec_decode import checks
from qspec_decode.noise import Seed, parse_seed
from qspec_kernels import QSpecError, UsageError, softmax
from qspec_kernels import draw as draw_rows

# the mass that probabilities are counted in: a float32 above 2**-37 is a whole number of them
_UNIT = 2**60


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a row ends. Names follow transformers and vLLM.

    Greedy unless told otherwise: the sampling options of a checkpoint's `generation_config.json` are not
    used. Values are kept in one form: Python numbers, a sequence of seeds as pairs, ids as a tuple.

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
        A value of another type or outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: Seed = None
    max_new_tokens: int = 128
    eos_token_id: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        temperature, top_p = checks.as_number(self.temperature), checks.as_number(self.top_p)
        if temperature is None or not 0 <= temperature < math.inf:
            raise UsageError(
                f"temperature is {self.temperature!r}; expected a finite number >= 0",
                "0 decodes greedily, 1 samples from the model's own distribution.",
            )
        if top_p is None or not 0 < top_p <= 1:
            raise UsageError(
                f"top_p is {self.top_p!r}; expected a number, 0 < top_p <= 1", "1 keeps every token."
            )
        values = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": checks.integer("top_k", self.top_k, 0, "0 keeps every token."),
            "max_new_tokens": checks.integer(
                "max_new_tokens",
                self.max_new_tokens,
                1,
                "It counts the tokens behind the prompt, row by row.",
            ),
            "seed": parse_seed(self.seed),
            "eos_token_id": _token_ids(self.eos_token_id),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def greedy(self) -> bool:
        """True at temperature 0."""
        return self.temperature == 0


def _token_ids(given: Any) -> tuple[int, ...] | None:
    """`eos_token_id` as ascending ids; whether they are in the vocabulary is for the model to say."""
    if given is None:
        return None
    entries = checks.plain(given)
    entries = entries if isinstance(entries, (list, tuple, set, frozenset)) else [entries]
    ids = [checks.as_integer(entry) for entry in entries]
    if None in ids:
        raise UsageError(
            f"eos_token_id is {given!r}; expected a token id or several",
            "None stands for the model's own, () for none at all.",
        )
    return tuple(sorted({i for i in ids if i is not None}))


def checked(ids: list[int]) -> list[int]:
    """The ids that `argmax` or `top2` chose.

    Raises
    ------
    QSpecError
        As `probabilities`: one is -1.
    """
    if min(ids, default=0) < 0:
        raise not_finite()
    return ids


def not_finite() -> QSpecError:
    """The error of logits that no token can be chosen from."""
    return QSpecError(
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
    probs = unchecked_probabilities(logits, params)
    if bool(probs[..., 0].isnan().any()):
        raise not_finite()
    return probs


def unchecked_probabilities(
    logits: Float[Tensor, "*n vocab"], params: SamplingParams
) -> Float[Tensor, "*n vocab"]:
    """`probabilities` without waiting for the device: NaN where it would raise, from which -1 is drawn."""
    if 0 < params.top_k < logits.shape[-1]:
        kth = logits.topk(params.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probs = softmax(logits, params.temperature)
    if params.top_p < 1:
        ordered, ids = probs.sort(dim=-1, descending=True, stable=True)
        # integers, whose sums are the same in any order: those of floats hang on how many rows there are
        mass = (ordered.double() * _UNIT).long()
        kept = mass.cumsum(-1) - mass < int(params.top_p * _UNIT)
        kept = torch.zeros_like(kept).scatter(-1, ids, kept) | probs.isnan()
        probs = softmax(logits.masked_fill(~kept, -torch.inf), params.temperature)
    return probs


def draw(weights: Float[Tensor, "*n vocab"], uniforms: Float64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """Inverse-CDF sampling: the first id whose cumulative weight exceeds uniform * total.

    Weights need not be normalised. An id of weight 0 is never drawn.
    """
    return draw_rows(weights.reshape(-1, weights.shape[-1]), uniforms.reshape(-1)).view(uniforms.shape)
