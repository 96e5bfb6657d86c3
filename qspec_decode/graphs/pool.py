"""The runners that stay with a model from call to call, within a bound of memory."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from qspec_decode import checks, ladder
from qspec_decode.fixed import FixedLevel
from qspec_decode.graphs.runner import Runner
from qspec_decode.graphs.wanted import Wanted, warn_of_eager
from qspec_decode.noise import RowSeed
from qspec_decode.proposal import Run
from qspec_decode.protocol import device_of
from qspec_decode.tokens import TokenBuffer
from qspec_kernels import UsageError

MOST_RUNNERS = 4
"""Runners that a model keeps; the one that has not been used for longest makes room."""

MOST_MEMORY = 0.5
"""Share of a GPU's memory that they may hold together, in use or idle, where no bound is given."""

_CAPACITY_STEP = 256


@contextmanager
def runner(wanted: Wanted, prompts: list[list[int]], seeds: list[RowSeed], capacity: int) -> Iterator[Runner]:
    """A runner for a call, with its prompts taken in: one of the model's, or a new one.

    While it is in use it belongs to that call alone; afterwards the model keeps it for the next one.

    Raises
    ------
    UsageError
        If enforce_eager=False asks for captured rounds that the model's bound leaves no room for.
    """
    model: Any = wanted.model
    pool = getattr(model, "graphs", None)
    if pool is None:
        pool = model.graphs = Runners(device_of(model))
    with pool.current():
        found = pool.take(wanted, len(prompts), capacity)
        try:
            found.start(prompts, seeds)
            yield found
            pool.keep(wanted, found)
        finally:
            pool.release(found)


class Runners:
    """The runners of one model, and what their graphs share.

    That is a stream, on which they run one after the other, and so the memory for what lives within a round.

    Parameters
    ----------
    device
        The model's.
    max_bytes
        What runners may hold together, in use or idle; otherwise `MOST_MEMORY` of a GPU's memory, elsewhere
        anything. `model.graphs = Runners(device, max_bytes)` gives a model a bound of its own.

    Raises
    ------
    UsageError
        If max_bytes is no integer, or below 0.
    """

    def __init__(self, device: torch.device, max_bytes: int | None = None):
        if max_bytes is not None:
            hint = "Bytes, as 2 << 30 for 2 GiB; None for half of a GPU's memory."
            max_bytes = checks.integer("max_bytes", max_bytes, 0, hint)
        self._device, self._max_bytes = device, max_bytes
        self._idle: list[tuple[tuple[Any, ...], Runner]] = []
        self._in_use: list[Runner] = []
        # what was made once and did not fit, in bytes
        self._too_large: dict[tuple[Any, ...], int] = {}
        self._lock = threading.RLock()
        self._stream: Any = None
        # what graphs share, of how many bytes, and how to get another
        self._memory: Any = None
        self._memory_bytes = 0
        self._new_memory: Callable[[], Any] = lambda: None
        if device.type == "cuda":
            if max_bytes is None:
                self._max_bytes = int(torch.cuda.mem_get_info(device)[1] * MOST_MEMORY)
            self._stream = torch.cuda.Stream(device)
            self._new_memory = torch.cuda.graph_pool_handle

    @property
    def num_bytes(self) -> int:
        """Memory of the device that runners hold, idle and in use: graphs, caches, buffers.

        What graphs share is given back with the last of them, so those that are gone may still count.
        """
        runners = *self._in_use, *(runner for _, runner in self._idle)
        return sum(runner.own_bytes for runner in runners) + (self._memory_bytes if runners else 0)

    def clear(self) -> None:
        """Give back what the idle ones hold."""
        self._idle.clear()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside, work goes to the stream of the graphs, behind what the caller's stream has to do.

        One thread at a time: what another one launched during a capture would become part of the graph.
        """
        if self._stream is None:
            yield
            return
        with self._lock, torch.cuda.device(self._device):
            outside = torch.cuda.current_stream()
            self._stream.wait_stream(outside)
            with torch.cuda.stream(self._stream):
                yield
            outside.wait_stream(self._stream)

    def take(self, wanted: Wanted, batch: int, capacity: int) -> Runner:
        """An idle runner for these rounds with room for the call, or a new one: in use until `keep` or
        `release` gets it.

        Raises
        ------
        UsageError
            If enforce_eager=False asks for a runner that the bound leaves no room for.
        """
        rows = bucket(batch)
        if (idle := self._find(wanted.key, rows, capacity)) is not None:
            self._in_use.append(idle)
            return idle
        room = min(-(-capacity // _CAPACITY_STEP) * _CAPACITY_STEP, wanted.model.max_positions)
        # a ladder that cannot be is no reason to give up graphs
        ladder.rungs(wanted.model, wanted.target, wanted.drafts)
        return self._new(wanted, rows, room)

    def keep(self, wanted: Wanted, runner: Runner) -> None:
        """Make a runner idle that a call is done with; of too many that one goes which was idle longest."""
        if any(one is runner for one in self._in_use):
            self.release(runner)
            self._idle.insert(0, (wanted.key, runner))
            del self._idle[MOST_RUNNERS:]

    def release(self, runner: Runner) -> None:
        """Forget a runner in use."""
        self._in_use = [one for one in self._in_use if one is not runner]

    def _find(self, key: tuple[Any, ...], rows: int, capacity: int) -> Runner | None:
        """An idle runner that serves, no longer among the idle ones.

        A function of its own, since a loop's variable would keep the last one alive while room is made.
        """
        for index, (kind, idle) in enumerate(self._idle):
            if kind == key and idle.batch_size == rows and idle.capacity >= capacity:
                return self._idle.pop(index)[1]
        return None

    def _new(self, wanted: Wanted, rows: int, capacity: int) -> Runner:
        """A runner within the bound; one that cannot be runs op by op, and ends with its call."""
        kind = wanted.key, rows, capacity
        size = self._too_large.get(kind)
        while size is None:
            alone = not (self._in_use or self._idle)
            made = self._made(wanted, rows, capacity, captured=True)
            if self._admits(made):
                self._in_use.append(made)
                return made
            size = made.num_bytes if alone or self._in_use else None
            # its memory is needed for what takes its place: itself, without what graphs before it left, or
            # rounds op by op
            del made
            if size is None:
                self.clear()
        self._tell(wanted, kind, size)
        return self._made(wanted, rows, capacity, captured=False)

    def _made(self, wanted: Wanted, rows: int, capacity: int, *, captured: bool) -> Runner:
        """`_make`; where memory runs out the idle ones are given up."""
        try:
            return self._make(wanted, rows, capacity, captured=captured)
        except (torch.OutOfMemoryError, UsageError):
            if not self._idle:
                raise
        # not in the handler, where the error still holds what was allocated
        self.clear()
        return self._make(wanted, rows, capacity, captured=captured)

    def _admits(self, made: Runner) -> bool:
        """Whether a new runner is within the bound; idle ones make room, longest idle first."""
        if self._max_bytes is None:
            return True
        least = self._memory_bytes + sum(runner.own_bytes for runner in (made, *self._in_use))
        if least > self._max_bytes:
            return False
        while least + sum(runner.own_bytes for _, runner in self._idle) > self._max_bytes:
            self._idle.pop()
        return True

    def _tell(self, wanted: Wanted, kind: tuple[Any, ...], size: int) -> None:
        """Say once why rounds of a kind are not captured; refuse where that was insisted on."""
        _, rows, capacity = kind
        others = f", of which calls under way hold {self.num_bytes:,}" if self._in_use else ""
        reason = (
            f"{rows} rows of {capacity} positions take {size:,} bytes, and what a model keeps for captured"
            f" rounds may take {self._max_bytes:,}{others}"
        )
        way_out = "model.graphs = qspec_decode.graphs.pool.Runners(device, max_bytes) sets another bound"
        if wanted.config.enforce_eager is False:
            raise UsageError(reason, f"{way_out}; enforce_eager=None decodes op by op.")
        if kind not in self._too_large:
            warn_of_eager(f"{reason} ({way_out})")
        # beside the runner of a call around this one it may be too large, and alone not
        if self._max_bytes is not None and size > self._max_bytes:
            self._too_large[kind] = size

    def _make(self, wanted: Wanted, rows: int, capacity: int, *, captured: bool) -> Runner:
        counts = wanted.drafting(fixed=True).num_speculative_tokens
        # tokens that mean nothing stand behind a row's end: the most that a pass takes of a row
        spare = 2 + 2 * max(counts, default=0)
        buffer = TokenBuffer([[]] * rows, capacity + spare, self._device, fixed=True)
        seeds = torch.zeros(rows, 2, dtype=torch.int64, device=self._device)
        run = Run(buffer, seeds, wanted.sampling, spare)
        top = ladder.build(run, wanted.model, wanted.target, wanted.drafts, wanted.config, fixed=True)
        assert isinstance(top, FixedLevel)
        if not captured:
            return Runner(run, top, wanted.eos, None)
        if not (self._in_use or self._idle):
            # PyTorch refuses the handle of memory whose graphs are all gone
            self._memory, self._memory_bytes = self._new_memory(), 0
        made = Runner(run, top, wanted.eos, self._memory)
        self._memory_bytes += made.graph_bytes
        return made


def bucket(batch: int) -> int:
    """Rows that are captured for so many: powers of two, then multiples of 8, then of 32."""
    if batch <= 8:
        return 1 << (batch - 1).bit_length()
    step = 8 if batch <= 64 else 32
    return -(-batch // step) * step
