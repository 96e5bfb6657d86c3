"""Threads of native kernels: how many, and how they keep the cores for themselves."""

import contextlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from qspec_kernels.dispatch import isa


def num_threads() -> int:
    """Threads that a native kernel may use: PyTorch's number, unless within `exclusive_threads`."""
    return _cpp_calls().num_threads()


@contextmanager
def exclusive_threads() -> Iterator[None]:
    """Inside, native kernels keep the threads they may use and PyTorch's own ops run on one.

    After each parallel op of PyTorch its workers spin for milliseconds on cores that kernels want, which
    triples the cost of sampling. A loop that leaves the heavy work to kernels is better off without them.
    Holds for the calling thread; where there are no native kernels nothing changes.
    """
    with contextlib.nullcontext() if isa() == "torch" else _cpp_calls().exclusive_threads():
        yield


def _cpp_calls() -> ModuleType:
    # imported on first use: importing qspec_kernels must not look at the machine
    return importlib.import_module("qspec_kernels.backends.cpp.calls")
