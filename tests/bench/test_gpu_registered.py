"""What `qspec bench gpu` has PyTorch check of the ops."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qspec_decode.bench.gpu import backends, cases, registered
from qspec_kernels import dispatch
from tests.bench.standin import Mutate, Standin, measured

UTILITIES, COUNTS = registered.UTILITIES, registered.COUNTS
pytestmark = pytest.mark.usefixtures("small", "torch_backend")


@pytest.mark.parametrize("op", cases.OPS)
def test_arguments_are_those_of_the_op(device: Standin, op: str) -> None:
    """Of every case, so that what is called is what was checked."""
    for case in cases.cases(op):
        called, args = registered.registered(device, case, "torch")
        arguments = called._schema.arguments
        assert len(args) == len(arguments)
        for given, argument in zip(args, arguments, strict=True):
            if argument.name == "phase":
                assert given == ("prefill" if op.endswith("_prefill") else "decode")
            if argument.name == "bits":
                assert given == int(op.removesuffix("_prefill")[-1] if "linear" in op else case.args[-3])
        first = next(one for one in args if isinstance(one, torch.Tensor))
        called(*args)
        assert first.device == device.device


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Mutate:
    """kernel(op, wrong): the backend's file of an op is wrong(kernel, *arguments)."""
    find = backends.function

    def apply(op: str, wrong: Callable[..., Any]) -> None:
        def found(backend: str, name: str) -> Callable[..., Any]:
            right = find(backend, name)
            return (lambda *given: wrong(right, *given)) if name == op else right

        monkeypatch.setattr(backends, "function", found)

    return apply


def writes_into_x(right: Callable[..., Any], *args: Any) -> Any:
    out = right(*args)
    args[0].view(-1)[0] += 1
    return out


def of_another_type(right: Callable[..., Any], *args: Any) -> Any:
    return right(*args).double()


@pytest.mark.parametrize(
    ("op", "wrong", "utility"),
    [
        ("linear_w4a16", writes_into_x, "test_schema"),
        ("linear_w4a8", of_another_type, "test_faketensor"),
        ("rmsnorm", lambda right, x, *rest: x, "test_schema"),
    ],
)
def test_what_breaks_a_promise_is_found(
    device: Standin, kernel: Mutate, monkeypatch: pytest.MonkeyPatch, op: str, wrong: Any, utility: str
) -> None:
    monkeypatch.setattr(registered, "UTILITIES", UTILITIES[:3])
    kernel(op, wrong)
    document = measured(device, ops=[op])
    failures = document["correctness"]["failures"]
    assert {(one["op"], one["backend"], *one["kinds"]) for one in failures} == {(op, "torch", "opcheck")}
    assert all(utility in one["failed"] for one in failures)
    assert document["correctness"]["kinds"]["opcheck"]["failed"] == len(failures)
    assert document["rows"] == []


@pytest.mark.parametrize("op", ["linear_mxfp4a8_prefill", "cache_write"])
def test_what_is_right_passes(device: Standin, monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    monkeypatch.setattr(registered, "UTILITIES", UTILITIES)
    monkeypatch.setattr(registered, "COUNTS", COUNTS[:2])
    made = cases.cases(op)
    verdicts = list(registered.check(device, made))
    assert {one.failed for one in verdicts} == {""}
    looked = [one.shape for one in verdicts if one.kinds == ("opcheck",)]
    ends = [made[0].shape, made[-1].shape]
    assert looked == ([one.shape for one in made] if "linear" in op else ends)
    assert [one.shape for one in verdicts if one.kinds == ("compiled",)] == ends


def test_each_backend_is_called_and_named(device: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one that dispatch would not take; afterwards dispatch is as it was."""
    find, called = dispatch.find, list[str]()

    def function(backend: str, op: str) -> Callable[..., Any]:
        return lambda x, *rest: called.append(backend) or torch.zeros_like(x)

    monkeypatch.setattr(registered, "UTILITIES", UTILITIES[:1])
    monkeypatch.setattr(backends, "function", function)
    monkeypatch.setattr(registered, "serving", lambda device, op: ["one", "other"])
    verdicts = list(registered.check(device, cases.cases("rmsnorm")))
    assert [one.backend for one in verdicts] == ["one", "one", "other", "other"]
    assert set(called[: len(called) // 2]) == {"one"}
    assert set(called[len(called) // 2 :]) == {"other"}
    assert dispatch.find is find


class Traced:
    """A kernel that is right, but not in a trace of few rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int):
        compile, self.inside, self.at = torch.compile, False, at

        def compiled(call: Callable[..., Any], **options: Any) -> Callable[..., Any]:
            traced = compile(call, **options)

            def run(*args: Any) -> Any:
                self.inside = True
                try:
                    return traced(*args)
                finally:
                    self.inside = False

            return run

        monkeypatch.setattr(torch, "compile", compiled)

    def __call__(self, right: Callable[..., Any], *args: Any) -> Any:
        out = right(*args)
        if self.inside and len(args[-2]) == self.at:
            args[0].view(-1)[-1] += 1
        return out


def test_a_trace_that_writes_something_else_is_found(
    device: Standin, kernel: Mutate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registered, "COUNTS", COUNTS[:2])
    kernel("cache_write", Traced(monkeypatch, at=2))
    verdicts = [one for one in registered.check(device, cases.cases("cache_write")) if one.failed]
    assert {(one.kinds, one.failed) for one in verdicts} == {(("compiled",), "M = 2: not what the op gives")}


def test_an_op_that_raises_is_in_the_table(
    device: Standin, kernel: Mutate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*_: Any) -> Any:
        raise RuntimeError("\nan illegal memory access\nand more")

    monkeypatch.setattr(registered, "UTILITIES", UTILITIES)
    monkeypatch.setattr(registered, "COUNTS", COUNTS)
    kernel("linear_bf16", raising)
    verdicts = list(registered.check(device, cases.cases("linear_bf16")))
    assert "test_schema: RuntimeError: an illegal memory access; " in verdicts[0].failed
    assert verdicts[-1].failed == "compiled: RuntimeError: an illegal memory access"
