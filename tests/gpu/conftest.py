"""Fixtures of tests about machines that are only said to have a GPU."""

from collections.abc import Iterator

import pytest

from tests.gpu.devices import Device, Files, on_paper, pretended


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    yield from pretended(monkeypatch)


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> Files:
    return on_paper(monkeypatch)
