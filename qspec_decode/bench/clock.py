"""Which forward passes a call made, and how long each took there, to be held against passes alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qspec_decode.model import Transformer
from qspec_decode.output import DecodingOutput
from qspec_decode.protocol import Cache


@dataclass(frozen=True)
class Made:
    """One forward pass.

    Parameters
    ----------
    owner
        Name of the model: "target" or "small".
    precision, draft
        What it decoded with, and whether with the output matrix of drafts.
    tokens
        Of all rows together.
    began, seconds
        On `time.perf_counter`'s clock.
    """

    owner: str
    precision: str
    draft: bool
    tokens: int
    began: float
    seconds: float


@dataclass(frozen=True)
class Call:
    """What one call decoded, and the passes it made after the prefill; of other programs none are known."""

    output: DecodingOutput
    passes: tuple[Made, ...] = ()

    @property
    def seconds_beside(self) -> float:
        """Seconds of decoding in which no forward pass ran: the choice of tokens, and Python."""
        return self.output.decode_seconds - sum(made.seconds for made in self.passes)


class Clocked:
    """A model that notes its passes.

    Parameters
    ----------
    model
        What computes.
    owner
        What its passes are noted as.
    made
        Where they are.
    """

    def __init__(self, model: Transformer, owner: str, made: list[Made]):
        self._model, self._owner, self._made = model, owner, made
        self.vocab_size = model.vocab_size
        self.max_positions = model.max_positions
        self.eos_token_ids = model.eos_token_ids
        self.precisions = model.precisions
        self.vocabulary = model.vocabulary
        self.device = model.device

    def new_cache(self, batch_size: int, capacity: int, precision: str) -> Cache:
        """The model's own."""
        return self._model.new_cache(batch_size, capacity, precision)

    def forward(
        self,
        ids: Tensor,
        rows: Tensor,
        positions: Tensor,
        cache: Any,
        precision: str,
        *,
        logits_at: Tensor | None = None,
        draft_head: bool = False,
        phase: str = "decode",
    ) -> Tensor:
        """As `protocol.Model.forward`."""
        began = time.perf_counter()
        logits = self._model.forward(
            ids, rows, positions, cache, precision, logits_at=logits_at, draft_head=draft_head, phase=phase
        )
        seconds = time.perf_counter() - began
        self._made.append(Made(self._owner, precision, draft_head, len(ids), began, seconds))
        return logits


def noted(decode: Callable[[], DecodingOutput], made: list[Made]) -> Call:
    """Run `decode`, whose models note their passes in `made`, and keep those behind the prefill."""
    made.clear()
    output = decode()
    # decoding ends with the call; a pass of the prefill lies wholly before its beginning
    began = time.perf_counter() - output.decode_seconds
    return Call(output, tuple(one for one in made if one.began + one.seconds / 2 > began))
