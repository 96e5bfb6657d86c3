"""The public ops served by the Triton backend on CPU tensors, so that the tests of every path can be used."""

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from qspec_kernels import dispatch

Mutate = Callable[[str, Callable[..., Any]], None]


def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mutate]:
    """What a fixture yields from: mutate(op, wrong), as in the tests of the torch path."""
    monkeypatch.setattr(dispatch, "_backends", lambda *_: ("triton",))
    monkeypatch.setattr(dispatch, "_capability", lambda device: (8, 0))
    dispatch.find.cache_clear()

    def mutate(op: str, wrong: Callable[..., Any]) -> None:
        module = importlib.import_module(f"qspec_kernels.backends.triton.{op}")
        monkeypatch.setattr(module, op, partial(wrong, getattr(module, op)))
        dispatch.find.cache_clear()

    yield mutate
    monkeypatch.undo()
    dispatch.find.cache_clear()


def sequential_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of matrices as matrix units have them: a number follows from its row and column alone.

    The interpreter leaves them to a BLAS, whose order of summation depends on where a number is.
    """

    def create_dot(_, a, b, d, *options):
        total = d.data.copy()
        for column, row in zip(a.data.T, b.data, strict=True):
            total += np.multiply.outer(column, row).astype(total.dtype)
        return TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
