"""The loop over rounds: what every row has got so far, and whether it goes on."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from qspec_decode.emission import Emission
from qspec_decode.output import Streamer
from qspec_decode.stats import SpecDecodingStats


@runtime_checkable
class Rounds(Protocol):
    """What the loop asks of what it runs: a `ModelLevel`, or captured rounds. Tensors are on the CPU."""

    def round(self, rows: Tensor, lengths: Tensor, limits: Tensor, phase: str = "decode") -> Emission:
        """Commit 1 to `limits` more tokens to each of `rows`, `lengths` tokens long."""
        ...

    def prefill(self, rows: Tensor, lengths: Tensor) -> None:
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
    rows.commit(everyone, top.round(everyone, rows.lengths, torch.ones_like(everyone), "prefill"), streamer)
    if rows.active.numel():
        top.prefill(rows.active, rows.lengths[rows.active])
    prefill_seconds = time.perf_counter() - began
    num_rounds = 0
    while rows.active.numel():
        active = rows.active
        rows.commit(active, top.round(active, rows.lengths[active], rows.limits[active]), streamer)
        num_rounds += 1
    if streamer:
        streamer.end()
    return Course(num_rounds, prefill_seconds, time.perf_counter() - began - prefill_seconds)


class OnDevice:
    """`Rounds` whose tensors are on a device.

    Parameters
    ----------
    rounds
        What runs there.
    device
        Where.
    """

    def __init__(self, rounds: Rounds, device: torch.device):
        self._rounds, self._device = rounds, device
        self.all_stats, self.give_back = rounds.all_stats, rounds.give_back
        self.num_bytes = rounds.num_bytes

    def round(self, rows: Tensor, lengths: Tensor, limits: Tensor, phase: str = "decode") -> Emission:
        """The round there, and what it committed here."""
        there = (tensor.to(self._device) for tensor in (rows, lengths, limits))
        return self._rounds.round(*there, phase=phase).on_host()

    def prefill(self, rows: Tensor, lengths: Tensor) -> None:
        """The same there."""
        self._rounds.prefill(rows.to(self._device), lengths.to(self._device))


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
        self._ends = torch.tensor([min(len(p) + max_new_tokens, max_positions) for p in prompts])
        self.lengths = torch.tensor([len(p) for p in prompts])
        self.active = torch.arange(len(prompts))
        self.token_ids: list[list[int]] = [[] for _ in prompts]
        self.finish_reasons = [""] * len(prompts)

    @property
    def limits(self) -> Tensor:
        """How many more tokens each row may get."""
        return self._ends - self.lengths

    def commit(self, rows: Tensor, emission: Emission, streamer: Streamer | None) -> None:
        """Take over a round's tokens, cut behind an end-of-text id, and retire finished rows."""
        self.lengths[rows] += emission.num_tokens
        counts, accepted = emission.num_tokens.tolist(), emission.num_accepted_tokens.tolist()
        full = (self.lengths[rows] == self._ends[rows]).tolist()
        new_tokens = []
        for row, ids, count, is_full in zip(rows.tolist(), emission.ids.tolist(), counts, full, strict=True):
            ids = ids[:count]
            stop = next((i for i, token in enumerate(ids) if token in self._eos), None)
            if stop is not None:
                ids = ids[: stop + 1]
                self.finish_reasons[row] = "stop"
            elif is_full:
                self.finish_reasons[row] = "length"
            self.token_ids[row] += ids
            new_tokens.append(ids)
        if streamer:
            streamer.put(rows.tolist(), new_tokens, emission.num_draft_tokens.tolist(), accepted)
        self.active = torch.tensor(
            [row for row in self.active.tolist() if not self.finish_reasons[row]], dtype=torch.int64
        )
