"""What a pass costs: forward passes over a warm cache, alone, and the part of them that is no kernel.

They are measured apart from the ladders that they explain: nothing is drafted or accepted here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch

from qspec_decode.bench.peaks import Peak
from qspec_decode.bench.record import Spread
from qspec_decode.bench.timing import Timed, interleave
from qspec_decode.model import Transformer
from qspec_decode.sampling import checked
from qspec_kernels import Program, exclusive_threads

MAX_WIDTH = 13
"""Tokens per row of the widest pass: the verification of 12 drafts."""


@dataclass(frozen=True)
class Pass:
    """A kind of forward pass.

    Parameters
    ----------
    owner
        Name of the model: "target" or "small".
    precision
        What it decodes with.
    width
        Tokens per row: 1 in a step, K + 1 in the verification of K drafts.
    draft
        Whether the output matrix of drafts is used.
    rows
        How many of the batch's rows are in it; None for all.
    """

    owner: str
    precision: str
    width: int = 1
    draft: bool = False
    rows: int | None = None


class Warm:
    """A model and a cache that holds `position` tokens of every row.

    Parameters
    ----------
    precision
        The target's, which chooses the type of the cache and fills it.
    rows
        Ids of one text per row of the batch, repeated where they are too short.
    position
        Where the passes that are timed begin.
    """

    def __init__(self, model: Transformer, precision: str, rows: Sequence[Sequence[int]], position: int):
        self.model, self.position = model, position
        texts = [list(islice(cycle(row), position + MAX_WIDTH)) for row in rows]
        self._ids = torch.tensor(texts).to(model.device)
        self.cache = model.new_cache(len(rows), position + MAX_WIDTH, precision)
        last = torch.arange(1, len(rows) + 1, device=model.device) * position - 1
        model.forward(*self._tokens(0, position), self.cache, precision, logits_at=last)
        inputs = [self._tokens(position, width) for width in range(MAX_WIDTH + 1)]
        # in the form in which decoding passes them
        self._inputs: list[Any] = inputs
        if model.takes_numbers:
            self._inputs = [tuple(tensor.tolist() for tensor in tensors) for tensors in inputs]

    def forward(self, kind: Pass) -> torch.Tensor:
        """Logits of the tokens at `position` and behind it."""
        inputs = self._inputs[kind.width]
        tokens = None if kind.rows is None else kind.rows * kind.width
        ids, rows, positions = (each[:tokens] for each in inputs)
        return self.model.forward(ids, rows, positions, self.cache, kind.precision, draft_head=kind.draft)

    def choose(self, kind: Pass) -> list[int]:
        """The tokens that such a pass makes greedy decoding commit."""
        return checked(self.model.top2(self.forward(kind), self.cache)[0].tolist())

    def program(self, kind: Pass) -> Program | None:
        """What such a pass replays; None where passes are not recorded."""
        self.forward(kind)
        if self.cache.replay is None:
            return None
        return self.cache.replay.latest

    def _tokens(self, first: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_rows, device = len(self._ids), self._ids.device
        rows = torch.arange(num_rows, device=device).repeat_interleave(width)
        positions = torch.arange(first, first + width, device=device).repeat(num_rows)
        return self._ids[:, first : first + width].flatten(), rows, positions


@exclusive_threads()
def time_passes(
    models: Mapping[str, Warm], kinds: Sequence[Pass], seconds: float, reading: Peak | None
) -> tuple[dict[Pass, Spread], Spread | None]:
    """(seconds of every kind of pass, bytes that `reading` reads per second), measured in turns.

    Parameters
    ----------
    seconds
        That each kind gets.
    reading
        The memory bound, which takes turns with them; None where there are no native kernels.
    """
    timed = [Timed(lambda warm=models[kind.owner], kind=kind: warm.forward(kind)) for kind in kinds]
    found = interleave([*timed, *([reading.timed] if reading else [])], seconds)
    bandwidth = None
    if reading:
        taken = found.pop()
        bandwidth = Spread(*(reading.amount / t for t in (taken.median, taken.high, taken.low)))
    return dict(zip(kinds, found, strict=True)), bandwidth


@exclusive_threads()
def outside_kernels(warm: Warm, kinds: Sequence[Pass], seconds: float) -> list[dict[str, Any]]:
    """Per kind: a replayed pass, the native call in it, and the rest: Python, copies, the choice of tokens.

    Nothing where there are no native kernels to record.
    """
    found = []
    for kind in kinds:
        program = warm.program(kind)
        if program is None:
            return []
        whole, kernels = interleave(
            [Timed(lambda kind=kind: warm.choose(kind)), Timed(program.replay)], seconds
        )
        found.append(
            {
                "precision": kind.precision,
                "pass_seconds": whole.median,
                "kernel_seconds": kernels.median,
                "outside_seconds": whole.median - kernels.median,
                "pass_quartiles": [whole.low, whole.high],
                "kernel_quartiles": [kernels.low, kernels.high],
            }
        )
    return found
