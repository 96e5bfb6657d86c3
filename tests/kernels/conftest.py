"""The native libraries one by one, and mutants: wrong kernels in place of right ones."""

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from qspec_kernels import dispatch
from qspec_kernels.backends.cpp import library
from tests.conftest import use_backend

Mutate = Callable[[str, Callable[..., Any]], None]


@pytest.fixture(params=list(library.REQUIRED_FLAGS))
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each native library that this CPU can run."""
    use_backend(request.param, monkeypatch)
    yield
    monkeypatch.undo()
    dispatch.reset()


@pytest.fixture(scope="session")
def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("no C++ compiler was found")
    return found


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch, torch_backend: None) -> Mutate:
    """mutate(op, wrong): the torch kernel of an op becomes wrong(right, *arguments) for this test."""

    def apply(op: str, wrong: Callable[..., Any]) -> None:
        module = importlib.import_module(f"qspec_kernels.backends.torch.{op}")
        monkeypatch.setattr(module, op, partial(wrong, getattr(module, op)))
        dispatch.find.cache_clear()

    return apply
