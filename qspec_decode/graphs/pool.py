"""Which calls decode in captured rounds, and the runners that stay with a model from call to call."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from qspec_decode import checks, ladder
from qspec_decode.fixed import FixedLevel
from qspec_decode.graphs.runner import Runner
from qspec_decode.ladder import Draft, DraftModel, SpeculativeConfig
from qspec_decode.model import Transformer
from qspec_decode.noise import RowSeed
from qspec_decode.proposal import Run
from qspec_decode.protocol import Model, device_of
from qspec_decode.sampling import SamplingParams
from qspec_decode.tokens import TokenBuffer
from qspec_kernels import UsageError, explain

MOST_RUNNERS = 4
"""Runners that a model keeps; the one that has not been used for longest makes room."""

MOST_MEMORY = 0.5
"""Share of a GPU's memory that they may hold together, in use or idle, where no bound is given."""

_CAPACITY_STEP = 256
# ops whose plain torch path looks at values on the host
_WAITING = ("attention", "rescore", "draw_residual")


@dataclass(frozen=True)
class Wanted:
    """What a call decodes: all that its rounds depend on.

    Parameters
    ----------
    target, drafts, config
        The ladder, as `ladder.build` takes it.
    sampling
        How tokens are chosen.
    eos
        Ids that end a row.
    """

    model: Model
    target: str
    drafts: list[Draft]
    config: SpeculativeConfig
    sampling: SamplingParams
    eos: frozenset[int]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that the same captured rounds serve, numbers of rows and tokens aside."""
        drafts = [
            (id(draft.model), draft.precision, draft.name) if isinstance(draft, DraftModel) else
            draft if isinstance(draft, str) else id(draft)
            for draft in self.drafts
        ]  # fmt: skip
        params, config = self.sampling, self.config
        counts = ladder.num_speculative_tokens(config, self.target, self.drafts)
        lookup = config.prompt_lookup_min, config.prompt_lookup_max
        chosen = None if params.greedy else (params.temperature, params.top_k, params.top_p)
        return self.target, tuple(drafts), tuple(counts), lookup, chosen, self.eos


def captures(wanted: Wanted) -> bool:
    """Whether a call decodes in captured rounds; says once why one on a GPU does not."""
    if wanted.config.enforce_eager is not None:
        return not wanted.config.enforce_eager
    reason = eager_because(wanted)
    if reason and device_of(wanted.model).type == "cuda":
        warnings.warn(f"rounds are not captured as CUDA graphs, which is slower: {reason}", stacklevel=3)
    return not reason


def eager_because(wanted: Wanted) -> str:
    """Why a call that leaves it to the device decodes op by op; empty if in captured rounds."""
    device = device_of(wanted.model)
    if device.type != "cuda":
        return f"the model is on {device}"
    models = [wanted.model]
    for draft in wanted.drafts:
        if not isinstance(draft, str):
            models.append(draft.model if isinstance(draft, DraftModel) else draft)
    for model in models:
        if not isinstance(model, Transformer):
            return f"{type(model).__name__} may wait for the device in its forward pass"
        for op in _WAITING:
            served = explain(op, device, model.dtype)
            if f"{op} on {device}: torch" in served:
                return served
    return ""


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
        self._memory: Any = None
        if device.type == "cuda":
            if max_bytes is None:
                self._max_bytes = int(torch.cuda.mem_get_info(device)[1] * MOST_MEMORY)
            self._stream = torch.cuda.Stream(device)
            self._memory = torch.cuda.graph_pool_handle()

    @property
    def num_bytes(self) -> int:
        """Memory of the device that runners hold, idle and in use: graphs, caches, buffers."""
        return sum(runner.num_bytes for runner in (*self._in_use, *(runner for _, runner in self._idle)))

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
        key, rows = wanted.key, bucket(batch)
        for index, (kind, idle) in enumerate(self._idle):
            if kind == key and idle.batch_size == rows and idle.capacity >= capacity:
                self._in_use.append(self._idle.pop(index)[1])
                return self._in_use[-1]
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

    def _new(self, wanted: Wanted, rows: int, capacity: int) -> Runner:
        """A runner within the bound; one that cannot be runs op by op, and ends with its call."""
        kind = wanted.key, rows, capacity
        size = self._too_large.get(kind)
        if size is None:
            try:
                made = self._make(wanted, rows, capacity, self._memory)
            except (torch.OutOfMemoryError, UsageError):
                if not self._idle:
                    raise
                self.clear()
                made = self._make(wanted, rows, capacity, self._memory)
            size = made.num_bytes
            if self._admits(size):
                self._in_use.append(made)
                return made
            # its memory is needed for what takes its place
            del made
        self._tell(wanted, kind, size)
        return self._make(wanted, rows, capacity, None)

    def _admits(self, size: int) -> bool:
        """Whether a runner of so many bytes is within the bound; idle ones make room, longest idle first."""
        if self._max_bytes is None:
            return True
        if size + sum(runner.num_bytes for runner in self._in_use) > self._max_bytes:
            return False
        while size + self.num_bytes > self._max_bytes:
            self._idle.pop()
        return True

    def _tell(self, wanted: Wanted, kind: tuple[Any, ...], size: int) -> None:
        """Say once why rounds of a kind are not captured; refuse where that was insisted on."""
        _, rows, capacity = kind
        reason = (
            f"{rows} rows of {capacity} positions take {size:,} bytes, and what a model keeps for captured"
            f" rounds may take {self._max_bytes:,}"
        )
        way_out = "model.graphs = qspec_decode.graphs.pool.Runners(device, max_bytes) sets another bound"
        if wanted.config.enforce_eager is False:
            raise UsageError(reason, f"{way_out}; enforce_eager=None decodes op by op.")
        if kind not in self._too_large:
            warnings.warn(
                f"rounds are not captured as CUDA graphs, which is slower: {reason} ({way_out})", stacklevel=5
            )
        # beside the runner of a call around this one it may be too large, and alone not
        if self._max_bytes is not None and size > self._max_bytes:
            self._too_large[kind] = size

    def _make(self, wanted: Wanted, rows: int, capacity: int, memory: Any) -> Runner:
        counts = ladder.num_speculative_tokens(wanted.config, wanted.target, wanted.drafts)
        # tokens that mean nothing stand behind a row's end: the most that a pass takes of a row
        spare = 2 + 2 * max(counts, default=0)
        buffer = TokenBuffer([[]] * rows, capacity + spare, self._device)
        seeds = torch.zeros(rows, 2, dtype=torch.int64, device=self._device)
        run = Run(buffer, seeds, wanted.sampling, spare)
        top = ladder.build(run, wanted.model, wanted.target, wanted.drafts, wanted.config, fixed=True)
        assert isinstance(top, FixedLevel)
        return Runner(run, top, wanted.eos, memory)


def bucket(batch: int) -> int:
    """Rows that are captured for so many: powers of two, then multiples of 8, then of 32."""
    if batch <= 8:
        return 1 << (batch - 1).bit_length()
    step = 8 if batch <= 64 else 32
    return -(-batch // step) * step
