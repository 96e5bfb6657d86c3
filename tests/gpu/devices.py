"""GPUs that a machine is only said to have."""

from collections.abc import Callable, Iterator

import pytest

from qspec_kernels import dispatch

Device = Callable[..., None]


def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """What a fixture yields from: device(capability, libraries), from where on there is a GPU of that
    capability, with those libraries, and where `lacking` is empty with all that CUDA sources need."""

    def install(
        capability: tuple[int, int] | None, libraries: tuple[str, ...] = ("triton",), lacking: str = ""
    ) -> None:
        right = dispatch.find_spec
        monkeypatch.setattr(dispatch, "_capability", lambda _: capability)
        monkeypatch.setattr(dispatch, "_cuda_refusal", lambda _: lacking)
        monkeypatch.setattr(
            dispatch,
            "find_spec",
            lambda name: name in libraries or None if name in ("triton", "cupy") else right(name),
        )
        dispatch.find.cache_clear()

    yield install
    monkeypatch.undo()
    dispatch.reset()
