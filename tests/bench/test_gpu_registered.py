"""What `qspec bench gpu` has PyTorch check of the ops."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qspec_decode.bench.gpu import cases, registered
from qspec_kernels import dispatch
from tests.bench.standin import Mutate, Standin, device, measured, mutate, small

__all__ = ["device", "mutate", "small"]

UTILITIES = registered.UTILITIES
pytestmark = pytest.mark.usefixtures("small", "torch_backend")


@pytest.mark.parametrize("op", cases.OPS)
def test_arguments_are_those_of_the_op(device: Standin, op: str) -> None:
    """Of every case, so that what is called is what was checked."""
    for case in cases.cases(op):
        name, args = registered.registered(device, case)
        schema = getattr(torch.ops.qspec, name).default._schema
        assert len(args) == len(schema.arguments)
        for given, argument in zip(args, schema.arguments, strict=True):
            if argument.name == "phase":
                assert given == ("prefill" if op.endswith("_prefill") else "decode")
            if argument.name == "bits":
                assert given == int(op.removesuffix("_prefill")[-1] if "linear" in op else case.args[-3])
        first = next(one for one in args if isinstance(one, torch.Tensor))
        getattr(torch.ops.qspec, name)(*args)
        assert first.device == device.device


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Mutate:
    """kernel(op, wrong): what dispatch finds for an op is wrong(kernel, *arguments)."""
    find = dispatch.find

    def apply(op: str, wrong: Callable[..., Any]) -> None:
        def found(name: str, *args: Any, **options: Any) -> Callable[..., Any]:
            right = find(name, *args, **options)
            return (lambda *given: wrong(right, *given)) if name == op else right

        monkeypatch.setattr(dispatch, "find", found)

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
    assert {(one["op"], one["backend"]) for one in failures} == {(op, "opcheck")}
    assert all(utility in one["failed"] for one in failures)
    assert document["rows"] == []


@pytest.mark.parametrize("op", ["linear_w4a8_prefill", "cache_write"])
def test_what_is_right_passes(device: Standin, monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    monkeypatch.setattr(registered, "UTILITIES", UTILITIES)
    verdicts = list(registered.check(device, cases.cases(op)))
    assert [one.failed for one in verdicts] == ["", ""]
    assert verdicts[0].shape != verdicts[1].shape


def test_an_op_that_raises_is_in_the_table(
    device: Standin, kernel: Mutate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*_: Any) -> Any:
        raise RuntimeError("\nan illegal memory access\nand more")

    monkeypatch.setattr(registered, "UTILITIES", UTILITIES)
    kernel("linear_bf16", raising)
    (one, _) = registered.check(device, cases.cases("linear_bf16"))
    assert "test_schema: RuntimeError: an illegal memory access; " in one.failed
