"""GPUs that a machine is only said to have, and kernels that are only said to be there."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from qspec_kernels import dispatch

Device = Callable[..., None]
Files = dict[tuple[str, str], SimpleNamespace]


def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """What a fixture yields from: device(capability, libraries), from where on there is a GPU of that
    capability, with those libraries, and where `lacking` and `unknown` are empty with all that CUDA sources
    and Triton need to compile for it."""

    def install(
        capability: tuple[int, int] | None,
        libraries: tuple[str, ...] = ("triton",),
        lacking: str = "",
        unknown: str = "",
    ) -> None:
        right = dispatch.find_spec
        monkeypatch.setattr(dispatch, "_capability", lambda _: capability)
        tools = {"cuda": lacking, "triton": unknown}
        monkeypatch.setattr(dispatch, "_tools_refusal", lambda backend, _: tools[backend])
        monkeypatch.setattr(
            dispatch,
            "find_spec",
            lambda name: name in libraries or None if name in ("triton", "cupy") else right(name),
        )
        dispatch.find.cache_clear()

    yield install
    monkeypatch.undo()
    dispatch.reset()


def on_paper(monkeypatch: pytest.MonkeyPatch) -> Files:
    """Files of the GPU backends by (backend, op), in place of those on disk; tests add theirs."""
    files: Files = {}
    has, module = dispatch._has, dispatch._module
    gpu = ("cuda", "triton")
    monkeypatch.setattr(
        dispatch, "_has", lambda backend, op: (backend, op) in files if backend in gpu else has(backend, op)
    )
    monkeypatch.setattr(
        dispatch, "_module", lambda backend, op: files[backend, op] if backend in gpu else module(backend, op)
    )
    return files


def kernel(name: str, reads: str = "int4_mma16", **more: object) -> SimpleNamespace:
    """A backend file with a function that says which it is."""
    return SimpleNamespace(linear_w4a16=lambda: name, READS=reads, **more)
