"""CUDA graphs without a GPU: ops are recorded with the tensors they worked on, and replayed on those tensors.

That is what a captured graph does: nothing of the Python that launched the ops is left, and what a replay
reads and writes lies where it lay during capture.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
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


class Waited(Exception):
    """An op that a graph cannot hold."""


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
        for function, arguments, options, outs in self._calls:
            for new, old in zip(tensors(function(*arguments, **options)), outs, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors(out: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


@contextmanager
def _graph(graph: EmulatedGraph, **_: Any) -> Iterator[None]:
    with graph:
        yield


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `capture.Captured` work on the CPU."""
    stream = SimpleNamespace(synchronize=lambda: None)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    fakes = {
        "CUDAGraph": EmulatedGraph,
        "graph": _graph,
        "Event": lambda: event,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda: (1 << 30, 1 << 31),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(capture, "_pinned", torch.empty_like)
