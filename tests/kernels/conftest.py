"""Mutants: wrong kernels in place of right ones, to see that a test would notice."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from qspec_kernels import dispatch

Mutate = Callable[[str, Callable[..., Any]], None]


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch, torch_backend: None) -> Mutate:
    """mutate(op, wrong): the torch kernel of an op becomes wrong(right, *arguments) for this test."""

    def apply(op: str, wrong: Callable[..., Any]) -> None:
        module = importlib.import_module(f"qspec_kernels.backends.torch.{op}")
        monkeypatch.setattr(module, op, partial(wrong, getattr(module, op)))
        dispatch.find.cache_clear()

    return apply
