"""`qspec bench gpu` without a GPU: what is timed, in which order, within which budget."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec_decode.bench.gpu import cases, correctness, kernel_plan, run, timing
from qspec_decode.bench.gpu.device import Gpu
from qspec_decode.commands import bench_gpu
from qspec_kernels import UsageError
from tests.bench.standin import FEW, TINY, Mutate, Standin, last_value, measured, request
from tests.decode.command_line import run as command

pytestmark = pytest.mark.usefixtures("small")


def test_the_document(device: Standin) -> None:
    document = measured(device)
    assert document["command"] == "bench gpu"
    assert document["finished"]
    assert document["gpu"] == device.facts()
    assert document["versions"]["torch"] == torch.__version__
    assert {"date", "commit"} <= document["machine"].keys()
    assert document["correctness"]["failures"] == []
    assert document["correctness"]["served"] == sorted(f"{op} (torch)" for op in FEW)
    assert document["correctness"]["opchecked"] == document["correctness"]["served"]
    assert document["correctness"]["unchecked"] == []
    kinds, made = document["correctness"]["kinds"], [case for op in FEW for case in cases.cases(op)]
    counts, repeated = len(correctness.COUNTS), sum(len(case.repeated) for case in made)
    assert {kind: one["checked"] for kind, one in kinds.items()} == {
        "fragments": 0,
        "error": counts * len(made),
        "graph": counts * len(made),
        # not of all rows, which the others are compared with
        "row": (counts - 1) * len(made) + repeated,
        "opcheck": sum(len(cases.cases(op)) if "linear" in op else 2 for op in FEW),
        "compiled": 0,
    }
    assert {one["failed"] for one in kinds.values()} == {0}
    assert {one["op"] for one in document["correctness"]["closest"]} == set(FEW)
    assert document["dropped"] == document["failures"] == []
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
    assert {row["op"]: row["weight_bytes"] for row in rows} == {
        "linear_w4a8": packed,
        "linear_w4a16": packed,
        "cublas_bf16": 2 * 256 * 64,
    }
    assert {row["op"]: row["bytes"] for row in rows} == {
        "linear_w4a8": packed + 3 * (256 + 4 * 64),
        "linear_w4a16": packed + 2 * 3 * (256 + 64),
        "cublas_bf16": 2 * 256 * 64 + 2 * 3 * (256 + 64),
    }


def test_both_phases_are_timed_where_both_come(device: Standin) -> None:
    ops = [f"linear_{name}" for name in ("w4a8", "w4a8_prefill", "w4a16_prefill")]
    rows = measured(device, ops=ops, rows=[64, 128, 512, 513], shapes=["256x64"])["rows"]
    timed = {m: {row["op"] for row in rows if row["m"] == m and not row["peer"]} for m in (64, 128, 512, 513)}
    # one phase alone is timed as it is asked for
    assert timed == {64: {ops[0], ops[2]}, 128: set(ops), 512: set(ops), 513: set(ops[1:])}
    for row in rows:
        if not row["peer"]:
            assert set(row["speedup_over"]) == {"cublas_bf16"}
    same = {row["op"]: row["bytes"] for row in rows if row["m"] == 128}
    assert same[ops[0]] == same[ops[1]] < same[ops[2]]
    assert {f"{op} (torch)" for op in ops} == set(measured(device, ops=ops)["correctness"]["served"])


def test_linear_is_every_linear_in_both_phases() -> None:
    names = request(ops=["linear"]).names
    assert {"linear_fp32", "linear_w4a4", "linear_w4a4_prefill", "linear_bf16_prefill"} <= set(names)
    assert all(name.startswith("linear_") for name in names)


def test_the_smallest_come_first_and_many_rows_last(device: Standin) -> None:
    whats = [task.what for task in kernel_plan.tasks(request(ops=["linear"], rows=[512, 8, 1]), device)]
    assert whats[:2] == ["linears of tiny.o, M = 1", "linears of tiny.o, M = 8"]
    assert [what.rpartition(" ")[2] for what in whats] == ["1", "8"] * 5 + ["512"] * 5


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


def test_a_run_that_is_cut_short_keeps_what_it_found(
    device: Standin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times, made = itertools.count(), run._timed

    def timed(*args: Any) -> Any:
        if next(times) == 2:
            raise KeyboardInterrupt
        return made(*args)

    monkeypatch.setattr(run, "_timed", timed)
    monkeypatch.setattr("qspec_decode.bench.gpu.device.Gpu", lambda: device)
    path = tmp_path / "gpu.json"
    path.write_text("of an earlier run")
    shown = command(
        "bench", "gpu", "--ops", "linear_w4a8", "--shapes", "256x64", "--m", "2,3,4", "--json", str(path)
    )
    assert shown.exit_code == 130
    document = json.loads(path.read_text())
    assert not document["finished"]
    assert document["correctness"]["checked"] > 0
    assert {row["m"] for row in document["rows"]} == {2, 3}
    assert document["seconds"] > 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_gets_the_finished_document_alone(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    keep = bench_gpu._keeper(path)
    keep({"finished": False})
    keep({"finished": True})
    assert json.loads(os.read(reading, 100)) == {"finished": True}
    os.close(reading)


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
