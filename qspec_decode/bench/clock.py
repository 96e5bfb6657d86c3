"""Which forward passes a call made, and how long each took there, to be held against passes alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qspec_decode.output import DecodingOutput
from qspec_decode.protocol import Model, Relay


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
    phase
        As in `protocol.Model.forward`: "prefill" for prompts.
    """

    owner: str
    precision: str
    draft: bool
    tokens: int
    phase: str
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


class Clocked(Relay):
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

    def __init__(self, model: Model, owner: str, made: list[Made]):
        super().__init__(model)
        self._owner, self._made = owner, made
        self.takes_numbers = getattr(model, "takes_numbers", False)

    def forward(
        self, ids: Any, rows: Any, positions: Any, cache: Any, precision: str, **options: Any
    ) -> Tensor:
        """As `protocol.Model.forward`."""
        began = time.perf_counter()
        logits = super().forward(ids, rows, positions, cache, precision, **options)
        seconds = time.perf_counter() - began
        draft, phase = options.get("draft_head", False), options.get("phase", "decode")
        self._made.append(Made(self._owner, precision, draft, len(ids), phase, seconds))
        return logits


def noted(decode: Callable[[], DecodingOutput], made: list[Made]) -> Call:
    """Run `decode`, whose models note their passes in `made`, and keep those behind the prefill."""
    made.clear()
    output = decode()
    return Call(output, tuple(one for one in made if one.phase == "decode"))
