"""`qspec bench gpu` without a GPU: the torch backend stands in for kernels, plain calls for graphs."""

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec_decode.bench import shapes
from qspec_decode.bench.gpu import backends, cases, correctness, linear_case, run, timing
from qspec_decode.bench.gpu.device import Captured, Gpu
from qspec_kernels import QSpecError, UsageError
from tests.decode.command_line import run as command
from tests.test_architecture import signatures

TINY = shapes.ModelShape("tiny", hidden=128, intermediate=256, heads=4, kv_heads=2, head_dim=32, vocab=200)
# of those that take long few are needed to see that the run is complete
FEW = ("linear_w4a8", "linear_w4a16", "hadamard_quantize_act", "attention", "rescore", "cache_write")


class Standin:
    """A device on the CPU."""

    device = torch.device("cpu")
    capability: tuple[int, int] = (9, 0)
    backends: tuple[str, ...] = ("torch",)
    l2_bytes: int = 1 << 10
    memory_bytes: int = 1 << 30

    def __init__(self) -> None:
        self.timed = 0

    def facts(self) -> dict[str, Any]:
        return {"name": "standin", "driver": "1.2"}

    def capture(self, call: Callable[[], Any]) -> Captured:
        out = call()

        def replay() -> None:
            for kept, new in zip(_tensors(out), _tensors(call()), strict=True):
                kept.copy_(new)

        return Captured(replay, out)

    def seconds(self, replay: Callable[[], object]) -> float:
        replay()
        self.timed += 1
        return self.timed * 1e-6


def _tensors(out: Any) -> tuple[torch.Tensor, ...]:
    return () if out is None else out if isinstance(out, tuple) else (out,)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.MODELS, "tiny", TINY)


@pytest.fixture
def device() -> Standin:
    return Standin()


Mutate = Callable[[str, Callable[..., Any]], None]


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch) -> Mutate:
    """mutate(op, wrong): the stand-in's kernel is wrong(kernel, *arguments); the reference stays right."""
    find = backends.function
    wrongs: dict[str, Callable[..., Any]] = {}

    def chosen(backend: str, op: str) -> Callable[..., Any]:
        return partial(wrongs[op], find(backend, op)) if op in wrongs else find(backend, op)

    monkeypatch.setattr(correctness._Run, "find", staticmethod(chosen))
    monkeypatch.setattr(linear_case, "function", chosen)
    return wrongs.__setitem__


def request(**changes: Any) -> run.Request:
    given = {"ops": FEW, "shapes": ["tiny"], "rows": [1, 200], "keys": 64, "batch": 2, **changes}
    return run.Request(**given)


def measured(device: Standin, **changes: Any) -> dict[str, Any]:
    document = run.run(request(**changes), device, lambda _: None)
    json.dumps(document, allow_nan=False)
    return document


@pytest.mark.parametrize("op", cases.OPS)
def test_the_reference_passes_its_own_checks(device: Standin, op: str) -> None:
    verdicts = [verdict for case in cases.cases(op) for verdict in correctness.check(device, case)]
    assert verdicts
    assert {verdict.m for verdict in verdicts} == set(correctness.COUNTS)
    assert [verdict for verdict in verdicts if verdict.failed] == []


def test_every_gpu_kernel_has_cases() -> None:
    own = (signatures("triton").keys() | signatures("cuda").keys()) & signatures("torch").keys()
    assert "attention" in own
    assert own <= set(cases.OPS)


def last_value(right: Callable[..., Any], *args: Any) -> Any:
    out = right(*args)
    results = _tensors(out) or args[:1]
    results[0].view(-1)[-1] += 9
    return out


def depends_on_rows(right: Callable[..., Any], *args: Any) -> Any:
    """As little wrong as a number can be, where more rows than one are given."""
    out = right(*args)
    first = _tensors(out)[0]
    if len(first) > 1:
        first[0] = torch.nextafter(first[0], torch.full_like(first[0], torch.inf))
    return out


def missing(right: Callable[..., Any], *args: Any) -> Any:
    out = right(*args)
    _tensors(out)[0].view(-1)[0] = torch.nan
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
    assert all("error" in one["failed"] for one in failures)
    assert all(one["error"] > one["bound"] for one in failures if one["error"] is not None)
    assert document["rows"] == []
    assert device.timed == 0


@pytest.mark.parametrize("op", ["linear_w4a16", "linear_bf16", "attention"])
def test_a_row_that_depends_on_how_many_there_are(device: Standin, mutate: Mutate, op: str) -> None:
    mutate(op, depends_on_rows)
    failures = measured(device, ops=[op])["correctness"]["failures"]
    assert {one["m"] for one in failures} == {1}
    assert {one["failed"] for one in failures} == {"row"}
    assert device.timed == 0


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
    failures = measured(device, ops=["linear_w4a8", "linear_w4a16"])["correctness"]["failures"]
    assert {one["failed"] for one in failures} == {"RuntimeError: an illegal memory access"}
    assert len(failures) == 20


def test_the_document(device: Standin) -> None:
    document = measured(device)
    assert document["command"] == "bench gpu"
    assert document["gpu"] == {"name": "standin", "driver": "1.2"}
    assert document["versions"]["torch"] == torch.__version__
    assert {"date", "commit"} <= document["machine"].keys()
    assert document["correctness"]["failures"] == []
    assert document["correctness"]["served"] == sorted(f"{op} (torch)" for op in FEW)
    assert {one["op"] for one in document["correctness"]["closest"]} == set(FEW)
    assert document["dropped"] == []
    assert {one["peer"] for one in document["skipped_peers"]} == {"tinygemm", "gemlite"}
    linears = {f"tiny.{name}" for name in TINY.linears}
    found = {(row["op"], row["shape"], row["m"]) for row in document["rows"]}
    for op in ("linear_w4a8", "linear_w4a16", "cublas_bf16"):
        assert {(op, shape, m) for shape in linears for m in (1, 200)} <= found
    for op in ("hadamard_quantize_act", "copy_of_its_bytes"):
        assert {(op, f"tiny {width}", m) for width in (128, 256) for m in (1, 200)} <= found
    assert {("attention", "tiny q=1 kv=64", 2), ("attention", "tiny q=4 kv=64", 8)} <= found
    assert len(found) == len(document["rows"]) == 30 + 8 + 2
    for row in document["rows"]:
        assert row["copies"] * row["bytes"] > 2 * device.l2_bytes
        assert 0 < row["us"]["low"] <= row["us"]["median"] <= row["us"]["high"]
        assert row["gb_per_second"] == pytest.approx(row["bytes"] / row["us"]["median"] / 1e3)
        assert row["tflops"] == pytest.approx(row["operations"] / row["us"]["median"] / 1e6)
        assert row["fraction_of_copy"] == pytest.approx(row["gb_per_second"] / row["copy_gb_per_second"])
        assert row["fraction_of_read"] == pytest.approx(row["gb_per_second"] / row["read_gb_per_second"])
        assert bool(row["speedup_over"]) == (not row["peer"] and row["op"] != "attention")


def test_bytes_are_counted(device: Standin) -> None:
    rows = measured(device, ops=["linear_w4a8", "linear_w4a16"], rows=[3], shapes=["256x64"])["rows"]
    packed = 256 * 64 // 2 + 2 * 64 * 2
    assert {row["op"]: row["bytes"] for row in rows} == {
        "linear_w4a8": packed + 3 * (256 + 4 * 64),
        "linear_w4a16": packed + 2 * 3 * (256 + 64),
        "cublas_bf16": 2 * 256 * 64 + 2 * 3 * (256 + 64),
    }


def test_the_budget_drops_what_is_left(device: Standin) -> None:
    # time passes by a second whenever somebody looks
    ticks = itertools.count()
    document = run.run(request(budget=9.5), device, lambda _: None, lambda: float(next(ticks)))
    everything = [task.what for task in run.tasks(request(), device)]
    assert 0 < len(document["dropped"]) < len(everything)
    assert [one["what"] for one in document["dropped"]] == everything[-len(document["dropped"]) :]
    assert {one["reason"] for one in document["dropped"]} == {"the budget was spent"}
    assert document["rows"]


def test_the_smallest_come_first_and_many_rows_last(device: Standin) -> None:
    whats = [task.what for task in run.tasks(request(ops=["linear"], rows=[512, 8, 1]), device)]
    assert whats[:2] == ["linears of tiny.o, M = 1", "linears of tiny.o, M = 8"]
    assert [what.rpartition(" ")[2] for what in whats] == ["1", "8"] * 5 + ["512"] * 5


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


def test_copies_exceed_the_cache_twice(device: Standin) -> None:
    for size in (1, 100, 1024, 5000):
        assert (timing.copies(device, size) - 1) * size > 2 * device.l2_bytes


def test_the_command(
    device: Standin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mutate: Mutate
) -> None:
    monkeypatch.setattr("qspec_decode.bench.gpu.device.Gpu", lambda: device)
    path = tmp_path / "gpu.json"
    few = ("bench", "gpu", "--ops", "linear_w4a8", "--shapes", "256x64", "--m", "2", "--json", str(path))
    shown = command(*few)
    assert shown.exit_code == 0, shown.stderr
    assert "none failed" in shown.stderr
    assert "256x64" in shown.stderr
    assert {row["m"] for row in json.loads(path.read_text())["rows"]} == {2}
    mutate("linear_w4a8", last_value)
    shown = command(*few)
    assert shown.exit_code == 1
    assert "nothing was timed" in shown.stderr
    assert "linear_w4a8" in shown.stderr
    assert json.loads(path.read_text())["correctness"]["failures"]


def test_without_a_gpu_it_says_what_is_missing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="GPU"):
        Gpu()
    shown = command("bench", "gpu")
    assert shown.exit_code == 2
    assert "expected one" in shown.stderr
    assert "qspec bench kernels" in shown.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ops", "linear,nothing"), "unknown op 'nothing'"),
        (("--shapes", "llama"), "unknown shape 'llama'"),
        (("--m", "0"), "--m is '0'"),
        (("--budget", "0"), "budget is 0.0; expected more than 0 seconds"),
        (("--json", "/no/such/place.json"), "whose directory does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(options: tuple[str, ...], message: str) -> None:
    shown = command("bench", "gpu", *options)
    assert shown.exit_code == 2
    assert message in shown.stdout + shown.stderr
