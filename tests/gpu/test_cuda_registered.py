"""The ops whose kernels are CUDA sources, emulated: opcheck, and one trace for any number of rows."""

from collections.abc import Callable
from typing import Any

import pytest

from qspec_decode.bench.gpu import backends, cases, registered
from qspec_decode.bench.gpu.correctness import Verdict
from tests.bench.standin import Standin, device
from tests.gpu.emulation.cases import LAUNCHERS, emulated

__all__ = ["device"]


@pytest.fixture(autouse=True)
def _kernels(device: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    device.backends, device.capability = ("cuda",), (8, 0)
    monkeypatch.setattr(backends, "lacking", lambda *_: "")
    monkeypatch.setattr(registered, "COUNTS", (5, 2))


def verdicts(device: Standin, op: str) -> list[Verdict]:
    """Of the first case: the others differ in what the schema says nothing of."""
    with emulated():
        return list(registered.check(device, cases.cases(op)[:1]))


@pytest.mark.parametrize("op", LAUNCHERS)
def test_what_pytorch_asks_of_an_op_holds(device: Standin, monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    called = []
    find = backends.function

    def watched(backend: str, name: str) -> Callable[..., Any]:
        right = find(backend, name)
        return lambda *given: called.append((backend, name)) or right(*given)

    monkeypatch.setattr(backends, "function", watched)
    found = verdicts(device, op)
    assert [one.kinds for one in found] == [(kind,) for kind in registered.KINDS]
    assert [one.failed for one in found] == ["", ""]
    assert set(called) == {("cuda", op)}


@pytest.mark.parametrize(
    "wrong",
    [lambda right, *given: right(*given).double(), lambda right, *given: right(*given)[:-1]],
    ids=["of another type", "a row too few"],
)
def test_a_launcher_that_breaks_the_ops_promise_is_seen(
    device: Standin, monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Any]
) -> None:
    find = backends.function
    monkeypatch.setattr(backends, "function", lambda *of: lambda *given: wrong(find(*of), *given))
    failed = [one.failed for one in verdicts(device, "linear_w4a8") if one.failed]
    assert any("test_faketensor" in one for one in failed)
