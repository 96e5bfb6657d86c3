"""What `qspec bench gpu` goes on without: what there is no time, no memory or no room for, and what fails."""

import importlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from qspec_decode.bench import shapes
from qspec_decode.bench.gpu import backends, cases, checks, kernel_plan, run
from qspec_kernels import KernelUnavailable, QSpecError
from tests.bench.standin import FEW, TINY, Mutate, Standin, last_value, measured, request

pytestmark = pytest.mark.usefixtures("small")


def test_the_budget_drops_what_is_left(device: Standin) -> None:
    # time passes by a second whenever somebody looks
    ticks = itertools.count()
    document = run.run(request(budget=60.5), device, lambda _: None, lambda: float(next(ticks)))
    checks = [one for one in document["dropped"] if one["what"].startswith("checks of ")]
    dropped = [one for one in document["dropped"] if one not in checks]
    everything = [task.what for task in kernel_plan.tasks(request(), device)]
    assert 0 < len(dropped) < len(everything)
    assert [one["what"] for one in dropped] == everything[-len(dropped) :]
    assert {one["reason"] for one in dropped} == {"the budget was spent"}
    assert document["rows"]
    # two fifths of the budget are theirs
    assert [one["what"].removeprefix("checks of ") for one in checks] == document["correctness"]["unchecked"]
    left_out = sum(len(cases.cases(op)[1:-1]) + 1 for op in FEW)
    assert len(checks) == left_out - 24
    # but something of each op is looked at
    assert document["correctness"]["served"] == sorted(f"{op} (torch)" for op in FEW)


def test_nothing_goes_unchecked_however_little_time_there_is(device: Standin) -> None:
    ops = ["rmsnorm", "linear_fp32"]
    found = checks.run(ops, device, lambda _: None, lambda: False)
    assert found["served"] == sorted(f"{op} (torch)" for op in ops)
    assert found["opchecked"] == []
    assert len(found["unchecked"]) == sum(len(cases.cases(op)[1:-1]) + 1 for op in ops) > 4


def test_what_does_not_fit_is_dropped(device: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_bytes", 1000, raising=False)
    document = measured(device, ops=["linear_w4a8"])
    assert document["rows"] == []
    assert all("GB of memory" in one["reason"] for one in document["dropped"])


def test_a_kernel_that_is_wrong_on_a_large_shape_is_not_timed(device: Standin, mutate: Mutate) -> None:
    def wrong(right: Callable[..., Any], *args: Any) -> Any:
        return last_value(right, *args) if args[-2] == 512 else right(*args)

    mutate("linear_w4a16", wrong)
    with pytest.raises(QSpecError, match=r"^linear_w4a16 \(torch\) is off by"):
        measured(device, ops=["linear_w4a16"], shapes=["512x64"])


@pytest.fixture
def sm_89(device: Standin, monkeypatch: pytest.MonkeyPatch) -> Standin:
    """The launcher of a CUDA kernel as it is on such a GPU, up to the launch."""
    launcher = importlib.import_module("qspec_kernels.backends.cuda.hadamard_quantize_act")
    monkeypatch.setattr(launcher._launch, "arch", lambda _: 89)
    monkeypatch.setattr(launcher._launch, "launch", lambda *_: pytest.fail("there is room for it"))
    monkeypatch.setattr(backends, "lacking", lambda *_: "")
    monkeypatch.setattr(checks, "run", lambda *_: {"failures": [], "unchecked": []})
    device.capability, device.backends = (8, 9), ("cuda", "torch")
    return device


def test_a_width_that_a_gpu_has_no_room_for_costs_nothing_else(
    sm_89: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of Llama 3 70B take more shared memory than a block has on Ada; only that kernel is left out."""
    wide = replace(TINY, hidden=28672, intermediate=28672)
    monkeypatch.setitem(shapes.MODELS, "tiny", wide)
    document = measured(sm_89, ops=["hadamard_quantize_act"], rows=[1, 2])
    (one,) = document["dropped"]
    assert one["what"] == "hadamard_quantize_act (cuda) of tiny 28672"
    assert "28672 features" in one["reason"]
    assert "101376 on sm_89" in one["reason"]
    found = {(row["op"], row["backend"], row["m"]) for row in document["rows"]}
    assert found == {
        (op, "torch", m) for op in ("hadamard_quantize_act", "copy_of_its_bytes") for m in (1, 2)
    }


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_backends_that_cannot_compile_for_a_gpu_are_left_out(
    device: Standin, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """What is installed may be older than the GPU."""
    dispatch = importlib.import_module("qspec_kernels.dispatch")
    device.backends, device.capability = (backend, "torch"), (12, 1)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name)
    monkeypatch.setattr(
        dispatch, "_tools_refusal", lambda *of: "{} does not know sm_{}{}".format(of[0], *of[1])
    )
    assert backends.refusal(device, backend, "linear_w4a8") == f"{backend} does not know sm_121"
    assert backends.serving(device, "linear_w4a8") == ["torch"]
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert "is not installed (" in backends.refusal(device, backend, "linear_w4a8")
    assert backends.refusal(device, backend, "nothing") == "has no such kernel"
    assert backends.lacking(device, "cpp") == "cpp is no backend of this device"


@pytest.mark.parametrize(
    ("error", "part", "what", "text"),
    [
        (
            torch.OutOfMemoryError(),
            "dropped",
            "linears of 512x64, M = 3",
            "there is not enough memory on the device",
        ),
        (KernelUnavailable("no compiler"), "dropped", "linear_w4a16 (torch) of 512x64", "no compiler"),
        (
            RuntimeError("illegal address\nand more"),
            "failures",
            "linear_w4a16 (torch) of 512x64, M = 3",
            "RuntimeError: illegal address",
        ),
    ],
)
def test_what_fails_does_not_cost_the_others(
    device: Standin, mutate: Mutate, error: Exception, part: str, what: str, text: str
) -> None:
    def failing(right: Callable[..., Any], *args: Any) -> Any:
        if len(args[0]) == 3 and args[-2] == 512:
            raise error
        return right(*args)

    mutate("linear_w4a16", failing)
    document = measured(device, ops=["linear_w4a16"], shapes=["512x64"], rows=[1, 3, 5])
    assert {row["m"] for row in document["rows"] if not row["peer"]} == {1, 5}
    # a kernel that fails costs itself, memory that runs out all that shares it
    peers = {row["m"] for row in document["rows"] if row["peer"]}
    assert peers == ({1, 5} if isinstance(error, torch.OutOfMemoryError) else {1, 3, 5})
    assert document[part] == [{"what": what, "reason" if part == "dropped" else "error": text}]
    assert document["finished"]
