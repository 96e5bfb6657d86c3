"""CUDA graphs without a GPU: ops are recorded with the tensors they worked on, and replayed on those tensors.

That is what a captured graph does: nothing of the Python that launched the ops is left, and what a replay
reads and writes lies where it lay during capture. Whatever would wait for a device is refused while a graph
is captured and while one is launched, and noted in a `Journal` elsewhere.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from qspec_decode.graphs import capture

# what no graph can hold: looking at a value, a shape that depends on values, memory of the host
WAITS = {
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten.masked_select.default",
    "aten.repeat_interleave.Tensor",
    "aten.lift_fresh.default",
    "aten.equal.default",
    "aten.is_nonzero.default",
}


# what brings values to the host, which the CPU's own tensors do without an op
LOOKS = {"cpu", "item", "numpy", "tolist", "__bool__", "__float__", "__index__", "__int__"}


class Waited(Exception):
    """Something that a graph cannot hold, or that a launch would wait for."""


class Journal:
    """What happened to graphs, in order: "launch", and "wait" where the host waited for a result of one.

    Others may write into `entries` too.
    """

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.held = ""
        """What must not wait now: "a capture", "a launch"; empty elsewhere."""

    def wait(self, what: str) -> None:
        """Note that the host waits for something; `Waited` where it must not."""
        if self.held:
            raise Waited(f"{self.held} waits: {what}")
        self.entries.append(what)

    @contextmanager
    def holding(self, what: str) -> Iterator[None]:
        """Inside, nothing may wait."""
        self.held = what
        try:
            with _NoLooks():
                yield
        finally:
            self.held = ""


class _NoLooks(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in LOOKS:
            raise Waited(func.__name__)
        return func(*args, **(kwargs or {}))


class _NoBlockingCopies(TorchDispatchMode):
    """What a launch copies it copies behind itself."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        refuse(func, args)
        if str(func) == "aten.copy_.default" and not (len(args) > 2 and args[2]):
            raise Waited("a blocking copy")
        return func(*args, **(kwargs or {}))


def refuse(function: Any, arguments: tuple[Any, ...]) -> None:
    """Raise `Waited` for an op that cannot be captured."""
    by_mask = str(function).startswith("aten.index") and any(
        isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(arguments[1])
    )
    if str(function) in WAITS or by_mask:
        raise Waited(str(function))


class EmulatedGraph(TorchDispatchMode):
    """Stands in for `torch.cuda.CUDAGraph`; as a context it captures."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        refuse(func, args)
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, tensors(out)))
        return out

    def replay(self) -> None:
        # on the device all of it happens later
        with _disable_current_modes():
            for function, arguments, options, outs in self._calls:
                for new, old in zip(tensors(function(*arguments, **options)), outs, strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def tensors(out: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


class _Event:
    """Stands in for `torch.cuda.Event`: it can be waited for once it has been recorded."""

    def __init__(self, journal: Journal):
        self._journal, self._recorded = journal, False

    def record(self) -> None:
        self._recorded = True

    def synchronize(self) -> None:
        assert self._recorded, "an event that was never recorded waits for nothing"
        self._journal.wait("wait")


def install(monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Let `capture.Captured` work on the CPU."""
    journal = Journal()

    @contextmanager
    def graph(graph: EmulatedGraph, **_: Any) -> Iterator[None]:
        with journal.holding("a capture"), graph:
            yield

    stream = SimpleNamespace(synchronize=lambda: journal.wait("the stream"))
    fakes = {
        "CUDAGraph": EmulatedGraph,
        "graph": graph,
        "Event": lambda: _Event(journal),
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "synchronize": lambda: journal.wait("the device"),
        "empty_cache": lambda: None,
        "mem_get_info": lambda: (1 << 30, 1 << 31),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(capture, "_pinned", torch.empty_like)
    watch(monkeypatch, journal, capture.Captured.launch)
    return journal


def watch(
    monkeypatch: pytest.MonkeyPatch, journal: Journal, launch: Callable[[capture.Captured], None]
) -> None:
    """Make `launch` the launch of graphs: noted, and not allowed to wait."""

    def launched(self: capture.Captured) -> None:
        journal.entries.append("launch")
        with journal.holding("a launch"), _NoBlockingCopies():
            launch(self)

    monkeypatch.setattr(capture.Captured, "launch", launched)
