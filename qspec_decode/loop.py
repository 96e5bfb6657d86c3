"""The loop over rounds: what every row has got so far, and whether it goes on."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from qspec_decode.emission import Emission
from qspec_decode.output import Streamer
from qspec_decode.stats import SpecDecodingStats


@runtime_checkable
class Rounds(Protocol):
    """What the loop asks of what it runs: a `ModelLevel`, or captured rounds."""

    def round(
        self, rows: Sequence[int], lengths: Sequence[int], limits: Sequence[int], phase: str = "decode"
    ) -> Emission:
        """Commit 1 to `limits` more tokens to each of `rows`, `lengths` tokens long."""
        ...

    def prefill(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Take in the prompts of the rows that go on."""
        ...

    def all_stats(self) -> Iterator[SpecDecodingStats]:
        """Statistics of every draft level, the nearest first."""
        ...

    @property
    def num_bytes(self) -> int | None:
        """Memory of the device that captured rounds hold; None of rounds that run op by op."""
        ...

    def give_back(self) -> None:
        """End the use of caches that are the call's own."""
        ...


@dataclass(frozen=True)
class Course:
    """How a call went: rounds after the prefill, and seconds."""

    num_rounds: int
    prefill_seconds: float
    decode_seconds: float


def run(top: Rounds, rows: "Rows", streamer: Streamer | None) -> Course:
    """Rounds until every row has ended."""
    began = time.perf_counter()
    # one token without a draft: its forward pass is the prefill
    everyone = rows.active
    rows.commit(everyone, top.round(everyone, rows.lengths, [1] * len(everyone), "prefill"), streamer)
    if rows.active:
        top.prefill(rows.active, rows.lengths_of(rows.active))
    prefill_seconds = time.perf_counter() - began
    num_rounds = 0
    while active := rows.active:
        lengths, limits = rows.lengths_of(active), rows.limits_of(active)
        rows.commit(active, top.round(active, lengths, limits), streamer)
        num_rounds += 1
    if streamer:
        streamer.end()
    return Course(num_rounds, prefill_seconds, time.perf_counter() - began - prefill_seconds)


class Rows:
    """Where every row stands: its committed length, its new tokens, and whether it goes on.

    Parameters
    ----------
    prompts
        Ids of each row's prompt.
    max_new_tokens, max_positions
        A row ends at whichever comes first: so many new tokens, or so many in all.
    eos
        Ids that end a row.
    """

    def __init__(
        self, prompts: list[list[int]], max_new_tokens: int, max_positions: int, eos: frozenset[int]
    ):
        self._eos = eos
        self._ends = [min(len(p) + max_new_tokens, max_positions) for p in prompts]
        self.lengths = [len(p) for p in prompts]
        self.active = list(range(len(prompts)))
        self.token_ids: list[list[int]] = [[] for _ in prompts]
        self.finish_reasons = [""] * len(prompts)

    def lengths_of(self, rows: Sequence[int]) -> list[int]:
        """How long each of some rows is."""
        return [self.lengths[row] for row in rows]

    def limits_of(self, rows: Sequence[int]) -> list[int]:
        """How many more tokens each of them may get."""
        return [self._ends[row] - self.lengths[row] for row in rows]

    def commit(self, rows: Sequence[int], emission: Emission, streamer: Streamer | None) -> None:
        """Take over a round's tokens, cut behind an end-of-text id, and retire finished rows."""
        new_tokens = []
        for row, ids in zip(rows, emission.ids, strict=True):
            self.lengths[row] += len(ids)
            stop = next((i for i, token in enumerate(ids) if token in self._eos), None)
            if stop is not None:
                ids = ids[: stop + 1]
                self.finish_reasons[row] = "stop"
            elif self.lengths[row] == self._ends[row]:
                self.finish_reasons[row] = "length"
            self.token_ids[row] += ids
            new_tokens.append(ids)
        if streamer:
            streamer.put(list(rows), new_tokens, emission.num_draft_tokens, emission.num_accepted_tokens)
        self.active = [row for row in self.active if not self.finish_reasons[row]]
