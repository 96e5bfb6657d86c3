"""What `qspec bench gpu` finds wrong before it times anything."""

import importlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from qspec_decode.bench.gpu import case, cases, correctness, prepared
from qspec_decode.bench.gpu.cases_linear import PROMPTS, WIDE
from qspec_decode.bench.gpu.correctness import EVERY
from qspec_decode.bench.gpu.device import Captured
from tests.bench.standin import Mutate, Standin, last_value, measured, tensors
from tests.test_architecture import signatures

pytestmark = pytest.mark.usefixtures("small")
PREPARE = prepared.prepare


@pytest.mark.parametrize("op", cases.OPS)
def test_the_reference_passes_its_own_checks(device: Standin, op: str) -> None:
    made = cases.cases(op)
    verdicts = [verdict for case in made for verdict in correctness.check(device, case)]
    assert verdicts
    assert {one.m for one in verdicts} == {*correctness.COUNTS, *(m for case in made for m in case.repeated)}
    assert [verdict for verdict in verdicts if verdict.failed] == []


def test_every_gpu_kernel_has_cases() -> None:
    defined = signatures("torch")
    own = {op for op in signatures("triton") | signatures("cuda") if op.removesuffix(case.PREFILL) in defined}
    assert {"attention", "linear_w4a8_prefill"} <= own
    assert own <= set(cases.OPS)


def depends_on_rows(right: Callable[..., Any], *args: Any) -> Any:
    """As little wrong as a number can be, where more rows than one are given."""
    out = right(*args)
    first = tensors(out)[0]
    if len(first) > 1:
        first[0] = torch.nextafter(first[0], torch.full_like(first[0], torch.inf))
    return out


def missing(right: Callable[..., Any], *args: Any) -> Any:
    out = right(*args)
    tensors(out)[0].view(-1)[0] = torch.nan
    return out


@pytest.mark.parametrize(
    "op", ["linear_w4a8", "linear_w4a16", "hadamard_quantize_act", "rescore", "attention"]
)
def test_a_wrong_value_stops_the_run_before_timing(device: Standin, mutate: Mutate, op: str) -> None:
    mutate(op, last_value)
    document = measured(device, ops=[op])
    failures = document["correctness"]["failures"]
    assert failures
    assert {(one["op"], one["backend"]) for one in failures} == {(op, "torch")}
    assert all("error" in one["failed"] for one in failures if one["m"] in correctness.COUNTS)
    assert all(one["error"] > one["bound"] for one in failures if one["error"] is not None)
    assert document["rows"] == []
    assert device.timed == 0


@pytest.mark.parametrize("op", ["linear_w4a16", "linear_bf16", "attention"])
def test_a_row_that_depends_on_how_many_there_are(device: Standin, mutate: Mutate, op: str) -> None:
    mutate(op, depends_on_rows)
    failures = measured(device, ops=[op])["correctness"]["failures"]
    more = {m for case in cases.cases(op) for m in case.repeated}
    assert {one["m"] for one in failures} == {1, *more}
    assert {one["failed"] for one in failures} == {"row"}
    assert device.timed == 0


def with_rows(count: int) -> Callable[..., Any]:
    """As little wrong as a number can be, where there are so many rows."""

    def wrong(right: Callable[..., Any], *args: Any) -> Any:
        return depends_on_rows(right, *args) if len(args[0]) == count else right(*args)

    return wrong


@pytest.mark.parametrize("count", [33, 63])
def test_a_row_is_the_same_with_any_number_of_rows(
    device: Standin, mutate: Mutate, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(correctness, "EVERY", EVERY)
    mutate("rmsnorm", with_rows(count))
    failures = measured(device, ops=["rmsnorm"])["correctness"]["failures"]
    assert {(one["failed"], one["m"]) for one in failures} == {("row", count)}


@pytest.mark.parametrize(("op", "count"), [("linear_w4a16", 128), ("linear_w4a8_prefill", 192)])
def test_a_row_of_many_is_the_same(device: Standin, mutate: Mutate, op: str, count: int) -> None:
    mutate(op, with_rows(count))
    failures = measured(device, ops=[op])["correctness"]["failures"]
    assert [(one["op"], one["failed"], one["m"]) for one in failures] == [(op, "row", count)]


def test_prompts_take_every_tile() -> None:
    pytest.importorskip("triton")
    tiles = importlib.import_module("qspec_kernels.backends.triton._tiles")
    _, n = WIDE
    for arch in tiles.PROCESSORS:
        # as wide as the launchers let them be
        for widest in (64, 128, 256) if arch in (90, 100) else (64, 128):
            sizes = {
                tiles.prefill(m, n, arch, step_bytes=(64, 256), widest=widest).block_m
                for m in (cases.ROWS, *PROMPTS)
            }
            assert sizes == {size[1] for size in tiles.PREFILL if size[1] <= widest}, (arch, widest)


def test_everything_is_compiled_before_it_is_checked(device: Standin, mutate: Mutate) -> None:
    called: Counter[int] = Counter()

    def noting(right: Callable[..., Any], x: torch.Tensor, *args: Any) -> Any:
        called[len(x)] += 1
        raise RuntimeError("found when it is checked")

    ops, said = ["rmsnorm", "rope"], []
    for op in ops:
        mutate(op, noting)
    PREPARE(ops, said.append, lambda: device, lambda: ThreadPoolExecutor(1))
    assert called == dict.fromkeys(correctness.TILES, sum(len(cases.cases(op)) for op in ops))
    assert said == ["compiling ..."]


def test_what_cannot_be_compiled_at_once_is_compiled_later() -> None:
    def nowhere() -> Any:
        raise RuntimeError("the device has a process already")

    said: list[str] = []
    PREPARE(["rmsnorm"], said.append, nowhere, lambda: ThreadPoolExecutor(1))
    assert "RuntimeError: the device has a process already" in said[-1]


def test_no_number_is_an_error(device: Standin, mutate: Mutate) -> None:
    mutate("linear_w4a16", missing)
    failures = measured(device, ops=["linear_w4a16"])["correctness"]["failures"]
    assert failures[0]["failed"] == "error"
    assert failures[0]["error"] is None


def test_a_replay_that_differs(device: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "capture", lambda call: Captured(lambda: None, call()), raising=False)
    failures = measured(device, ops=["linear_w4a8"])["correctness"]["failures"]
    assert {one["failed"] for one in failures} == {"graph"}


def test_a_kernel_that_raises_is_in_the_table(device: Standin, mutate: Mutate) -> None:
    def raising(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access\nand more")

    mutate("linear_w4a8", raising)
    found = measured(device, ops=["linear_w4a8", "linear_w4a16"])["correctness"]
    assert {one["failed"] for one in found["failures"]} == {"RuntimeError: an illegal memory access"}
    assert len(found["failures"]) == 20
    # the rest is not looked at, which is said
    assert {"linear_w4a8 by PyTorch", "linear_w4a16 by PyTorch"} <= set(found["unchecked"])


def last_of_equals(right: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    ids = right(x)
    return torch.where(ids >= 0, x.shape[1] - 1 - right(x.flip(1)), ids)


def some_q_everywhere(
    right: Callable[..., Any], p: Any, q: Any, uniforms: Any, p_rows: Any, q_rows: Any
) -> Any:
    return right(p, q, uniforms, p_rows, None if q_rows is None else q_rows.clamp(min=0))


NEARLY_RIGHT = {
    "argmax": last_of_equals,
    "top2": lambda right, x: (right(x)[0], right(x)[1].flip(1)),
    "softmax": lambda right, x, temperature: right(x.nan_to_num(neginf=0.0), temperature),
    "draw": lambda right, weights, uniforms, rows, without: right(weights, uniforms, rows, None),
    "draw_residual": some_q_everywhere,
    "silu_mul_hadamard_quantize_act": lambda right, x, base, diagonal, *rest: right(x, base, None, *rest),
}


@pytest.mark.parametrize("op", NEARLY_RIGHT)
def test_what_is_wrong_in_some_cases_only(device: Standin, mutate: Mutate, op: str) -> None:
    mutate(op, NEARLY_RIGHT[op])
    verdicts = [verdict for case in cases.cases(op) for verdict in correctness.check(device, case)]
    wrong = {verdict.shape for verdict in verdicts if verdict.failed}
    assert wrong
    assert {verdict.failed for verdict in verdicts} <= {"", "error"}
    assert len(wrong) < len(cases.cases(op))
