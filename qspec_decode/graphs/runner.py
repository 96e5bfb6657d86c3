"""`Runner`: captured rounds with the buffers and caches they work on, used by one call after the other."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from qspec_decode.emission import Emission
from qspec_decode.fixed import FixedLevel
from qspec_decode.graphs.capture import Called, Captured
from qspec_decode.graphs.round import Round
from qspec_decode.noise import RowSeed
from qspec_decode.proposal import Run
from qspec_decode.sampling import not_finite
from qspec_decode.stats import SpecDecodingStats

LOOKAHEAD = 1
"""Rounds that are launched before the one that the host waits for is over: the device never idles."""


class Runner:
    """`loop.Rounds` whose decode rounds have been captured.

    The prefill runs op by op, for prompts have as many lengths as there are; rounds follow as graphs.

    Parameters
    ----------
    run, top
        Buffer, seeds and levels, for a number of rows and a capacity that no call may exceed.
    eos
        Ids that end a row.
    pool
        Handle of the memory that graphs share; None calls the rounds as they are, on any device.
    """

    def __init__(self, run: Run, top: FixedLevel, eos: frozenset[int], pool: Any):
        self._run, self._top = run, top
        self._device = run.seeds.device
        self._round = Round(top, torch.tensor(sorted(eos), dtype=torch.int64).to(self._device))
        self._rounds = Called(self._round) if pool is None else Captured(self._round, pool, LOOKAHEAD + 1)
        self._prefilled = self._begun = False
        self._waiting = 0

    @property
    def batch_size(self) -> int:
        """Rows that it has room for."""
        return len(self._run.seeds)

    @property
    def capacity(self) -> int:
        """Tokens that a row has room for."""
        return self._run.capacity

    @property
    def graph_bytes(self) -> int:
        """Memory of the device that its graph took of what graphs share, beyond what that had before."""
        return self._rounds.num_bytes

    @property
    def own_bytes(self) -> int:
        """Memory of the device that nothing else holds: caches, buffers."""
        caches = {id(level.cache): level.cache for level in self._top.connect()}.values()
        return sum(getattr(cache, "num_bytes", 0) for cache in caches) + self._run.buffer.ids.nbytes

    @property
    def num_bytes(self) -> int:
        """Memory of the device that it was made with: graph, caches, buffers."""
        return self.graph_bytes + self.own_bytes

    def start(self, prompts: list[list[int]], seeds: list[RowSeed]) -> None:
        """Take in the prompts of a call; whatever an earlier one left is forgotten."""
        self._rounds.forget()
        self._prefilled = self._begun = False
        self._waiting = 0
        self._run.buffer.restart(prompts)
        self._run.seeds[: len(prompts)] = torch.tensor(seeds).to(self._device)
        self._top.restart()
        self._round.finished.fill_(True)

    def round(
        self, rows: Sequence[int], lengths: Sequence[int], limits: Sequence[int], phase: str = "decode"
    ) -> Emission:
        """The next round. The first makes a token from the prompts, op by op."""
        if not self._prefilled:
            self._prefilled = True
            emission = self._top.round(rows, lengths, limits, phase)
            if any(token < 0 for ids in emission.ids for token in ids):
                raise not_finite()
            return emission
        if not self._begun:
            self._begin(rows, lengths, limits)
        while self._waiting <= LOOKAHEAD:
            self._rounds.launch()
            self._waiting += 1
        self._waiting -= 1
        return self._round.read(self._rounds.result(), rows)

    def prefill(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Take in the prompts in the caches that the first token's pass did not fill."""
        self._top.prefill(rows, lengths)

    def all_stats(self) -> Iterator[SpecDecodingStats]:
        """Statistics of every draft level, the nearest first."""
        return self._top.all_stats()

    def give_back(self) -> None:
        """Nothing: it keeps its caches for the next call."""

    def _begin(self, rows: Sequence[int], lengths: Sequence[int], limits: Sequence[int]) -> None:
        """From here on the device knows itself which rows go on and how long they are."""
        self._run.buffer.begin()
        self._top.begin()
        state = torch.ones(3, self.batch_size, dtype=torch.int64)
        for row, length, limit in zip(rows, lengths, limits, strict=True):
            state[:, row] = torch.tensor([length, length + limit, 0])
        there = state.to(self._device)
        self._round.lengths.copy_(there[0])
        self._round.ends.copy_(there[1])
        self._round.finished.copy_(there[2])
        self._begun = True
