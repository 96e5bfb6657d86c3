"""`Model`: all that decoding asks of a model, so that tests can put tables in its place."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from qspec_kernels import top2 as top2_of


@runtime_checkable
class Cache(Protocol):
    """Keys and values by row and position; only the model that made it looks inside."""

    @property
    def batch(self) -> int: ...

    @property
    def capacity(self) -> int: ...


@runtime_checkable
class Model(Protocol):
    """A causal language model that can be run in several precisions over one cache.

    `vocab_size` is the width of the logits, `max_positions` the longest sequence, `precisions` the
    names that `forward` accepts, the default of a draft first, `eos_token_ids` the ids that end a text.

    A model may also have `vocabulary`, a digest of its tokenizer's tokens and ids: two models with equal
    ones can draft for each other even if the widths of their logits differ. It may have `device`, where
    it takes ids and returns logits; without it that is the CPU. It may have `bytes_per_pass(precision, *,
    draft_head)`, the bytes of weights that a pass reads, from which the costs of levels are compared. It may
    have `top2(logits, cache)`: `qspec_kernels.top2`, where it has a faster way to that of the last pass. And
    where it has `takes_numbers`, which is true, its `forward` takes lists of numbers in place of tensors.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    @property
    def precisions(self) -> tuple[str, ...]: ...

    def new_cache(self, batch_size: int, capacity: int, precision: str) -> Cache:
        """Memory for `batch_size` sequences of up to `capacity` positions.

        Rounds of fixed shapes ask for a few more than `max_positions`; what stands there is not looked at.
        """
        ...

    def forward(
        self,
        ids: Tensor,
        rows: Tensor,
        positions: Tensor,
        # Any, because a parameter of type Cache would refuse models that name their own class here
        cache: Any,
        precision: str,
        *,
        logits_at: Tensor | None = None,
        draft_head: bool = False,
        phase: str = "decode",
    ) -> Tensor:
        """Run a flat batch of tokens: token t is `ids[t]` at `positions[t]` of sequence `rows[t]`.

        Any number of tokens of any rows, positions ascending within a row; each sees the tokens
        before it in its row, from the cache or from this call. Returns next-token logits
        [len(logits_at) or T, vocab_size] in float32, with -inf for ids that cannot be drawn.
        `draft_head` allows a cheaper output matrix where the precision has one. `phase` is "prefill" for
        passes over whole prompts, which may use other kernels and then sum in another order; plain decoding
        and speculation make the same passes in it. The logits are good until the next pass over the same
        cache.
        """
        ...


@dataclass(frozen=True)
class FlatTokens:
    """Tokens of any rows in the flat form that `Model.forward` takes, as numbers.

    Parameters
    ----------
    ids, rows, positions
        One entry per token: its id, its row of the batch, its absolute position.
    logits_at
        Indices of the tokens whose logits are wanted; None for all of them.
    """

    ids: list[int]
    rows: list[int]
    positions: list[int]
    logits_at: list[int] | None = None


class Relay:
    """A model that leaves everything to another one, for subclasses that change a part of it.

    Parameters
    ----------
    model
        What computes.
    """

    def __init__(self, model: Model):
        self._model = model
        self.vocab_size = model.vocab_size
        self.max_positions = model.max_positions
        self.eos_token_ids = model.eos_token_ids
        self.precisions = model.precisions
        self.vocabulary = getattr(model, "vocabulary", None)
        self.device = device_of(model)
        self.bytes_per_pass = getattr(model, "bytes_per_pass", None)
        self.top2 = getattr(model, "top2", None)

    def new_cache(self, batch_size: int, capacity: int, precision: str) -> Cache:
        """The model's own."""
        return self._model.new_cache(batch_size, capacity, precision)

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """As `Model.forward`."""
        return self._model.forward(*inputs, **options)


def forward(
    model: Model,
    tokens: FlatTokens,
    cache: Cache,
    precision: str,
    *,
    draft_head: bool = False,
    phase: str = "decode",
) -> Tensor:
    """`Model.forward`; the numbers become tensors where the model is, unless it takes them as they are."""
    flat: Any = tokens.ids, tokens.rows, tokens.positions
    at: Any = tokens.logits_at
    if not getattr(model, "takes_numbers", False):
        device = device_of(model)
        flat = torch.tensor(flat).to(device)
        at = None if at is None else torch.tensor(at).to(device)
    ids, rows, positions = flat
    return model.forward(
        ids, rows, positions, cache, precision, logits_at=at, draft_head=draft_head, phase=phase
    )


def give_back(cache: Cache) -> None:
    """Tell a cache that its use has ended, if it wants to know."""
    end = getattr(cache, "give_back", None)
    if end is not None:
        end()


def device_of(model: Model) -> torch.device:
    """Where a model takes ids and returns logits."""
    return getattr(model, "device", torch.device("cpu"))


def top2(model: Model, logits: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
    """Id of the highest logit of each row, -1 where there is none, and its two highest logits."""
    own = getattr(model, "top2", None)
    return top2_of(logits) if own is None else own(logits, cache)
