"""`qspec bench kernels`: turns, rotation, gates, bounds and the document, on tiny shapes."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import qspec_kernels
from qspec_decode import machine
from qspec_decode.bench import facts, gate, kernels, op_case, peaks, shapes, timing
from qspec_decode.bench.contender import Rotation
from qspec_decode.bench.record import Spread
from qspec_decode.bench.timing import MIN_SAMPLES, Timed, interleave
from qspec_kernels import KernelUnavailable, QSpecError, UsageError, Workspace, dispatch
from tests.decode.command_line import run

TINY = shapes.ModelShape("tiny", hidden=128, intermediate=256, heads=4, kv_heads=2, head_dim=32, vocab=200)
LINEARS = ["linear_bf16", "linear_w4a16", "linear_w4a8", "linear_w4a4", "linear_mxfp4a16", "linear_mxfp4a8"]
PEERS = ["torch_linear_bf16", "torch_int4pack"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.MODELS, "tiny", TINY)
    monkeypatch.setattr(kernels, "rotation_bytes", lambda: 1 << 20)
    monkeypatch.setattr(kernels, "many_rows_bytes", lambda: 1 << 19)
    monkeypatch.setattr(timing, "_SETTLE_SECONDS", 0.0)


@pytest.fixture
def native() -> None:
    if qspec_kernels.isa() == "torch":
        pytest.skip("there are no native kernels to time")


def request(**changes: Any) -> kernels.Request:
    return kernels.Request(**{"shapes": ["tiny"], "rows": [1], "seconds": 1e-4, **changes})


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order, slept = [0.0], [], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", slept.append)

    def contender(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            now[0] += seconds

        return run

    everyone = [
        Timed(contender("a", 1.0)),
        Timed(contender("b", 2.0), 4),
        Timed(contender("c", 0.5), settle=True),
    ]
    assert interleave(everyone, 0.1) == [Spread(1.0, 1.0, 1.0), Spread(0.5, 0.5, 0.5), Spread(0.5, 0.5, 0.5)]
    # the first turn begins with an untimed call; where a call is that long the others do not
    assert "".join(order) == "aabbcc" + "bca" + "cab" + "abc" + "bca"
    assert len(slept) == MIN_SAMPLES
    order.clear()
    interleave(everyone[:1], 8.0)
    assert len(order) == 8


def test_copies_are_shared_and_none_is_read_again_before_the_others(native: None) -> None:
    read: list[tuple[str, int]] = []
    rotation = Rotation(1 << 30, 3)
    one, two = (rotation.called(lambda copy, name=name: read.append((name, copy))) for name in "ab")
    for timed in (one, two, two, one):
        timed.run()
    assert read == [("a", 0), ("b", 1), ("b", 2), ("a", 0)]
    assert one.calls == 1
    assert one.settle


def test_small_kernels_share_a_program(native: None) -> None:
    x, gain = torch.ones(1, 8), torch.ones(8)
    seen: list[int] = []

    def call(copy: int) -> None:
        seen.append(copy)
        qspec_kernels.rmsnorm(x, gain)

    # four of a megabyte each make a program, and what is left over none
    timed = Rotation(1 << 20, 11).recorded(Workspace(), call)
    assert (timed.calls, seen) == (4, list(range(8)))
    assert Rotation(1, 1000).calls == 64
    assert Rotation(1, 3).calls == 3


def test_names_of_shapes() -> None:
    everything = shapes.choose(["llama-3-8b"])
    assert [model.name for model in everything.models] == ["llama-3-8b"]
    assert [(one.k, one.n) for one in everything.linears] == [
        (4096, 6144),
        (4096, 4096),
        (4096, 14336),
        (4096, 28672),
        (14336, 4096),
    ]
    some = shapes.choose(["qwen2.5-7b.down", "4096X14336", "qwen2.5-7b.down"])
    assert some.models == ()
    assert [(one.name, one.k, one.n) for one in some.linears] == [
        ("qwen2.5-7b.down", 18944, 3584),
        ("4096x14336", 4096, 14336),
    ]
    for wrong in ("llama", "llama-3-8b.up", "4096x", "0x5", "x", ""):
        with pytest.raises(UsageError, match=r"llama-3.2-1b, llama-3-8b, qwen2.5-7b") as error:
            shapes.choose([wrong])
        assert "qkv, o, gate, gate_up, down" in error.value.hint


def test_caches_and_memory_decide_how_much_is_rotated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert peaks.last_level_cache(tmp_path) is None
    for index, size in enumerate(("32K", "1024K", "512M", "")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert peaks.last_level_cache(tmp_path) == 512 << 20
    for cache, available, few, many in (
        (32 << 20, 64 << 30, 1 << 30, 128 << 20),
        (512 << 20, 64 << 30, 2 << 30, 2 << 30),
        (None, None, 1 << 30, 1 << 30),
        (32 << 20, 800 << 20, 100 << 20, 100 << 20),
    ):
        monkeypatch.setattr(peaks, "last_level_cache", lambda cache=cache: cache)
        monkeypatch.setattr(machine, "available_bytes", lambda available=available: available)
        assert (peaks.rotation_bytes(), peaks.many_rows_bytes()) == (few, many)


def test_gates_tell_right_from_wrong() -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    near, far = exact.float(), exact.float() * (1 + 1e-5)
    gate.close("x", near, exact, near)
    gate.close("x", far, exact, far)
    for wrong in (far, near * torch.nan):
        with pytest.raises(QSpecError, match=r"x is off by .* so it was not timed"):
            gate.close("x", wrong, exact, near)
    gate.same("x", near, near.clone())
    for wrong in (far, near.double(), near[None]):
        with pytest.raises(QSpecError, match="x computed something else than its definition"):
            gate.same("x", near, wrong)


def test_the_document(native: None) -> None:
    document = kernels.run(request(rows=[1, 17]))
    json.dumps(document, allow_nan=False)
    linears = [f"tiny.{name}" for name in TINY.linears]
    found = {(row["op"], row["shape"], row["m"]) for row in document["rows"]}
    ops = [op for op in kernels.DEFAULT_OPS if op not in LINEARS]
    assert {(op, "tiny", m) for op in ops for m in (1, 17)} <= found
    assert {(op, shape, m) for op in LINEARS for shape in linears for m in (1, 17)} <= found
    assert {(op, shape, m) for op in PEERS for shape in linears for m in (1, 17)} <= found
    assert len(document["rows"]) == len(found) == 2 * (len(ops) + len(linears) * (len(LINEARS) + len(PEERS)))
    assert set(document["bounds"]) == {"memory", "bf16", "fp32", "int8"}
    assert document["machine"]["isa"] == qspec_kernels.isa()
    assert document["overhead_us"]["op"]["median"] > 0
    for row in document["rows"]:
        assert row["peer"] == (row["op"] in PEERS)
        assert 0 < row["us"]["low"] <= row["us"]["median"] <= row["us"]["high"]
        assert row["gb_per_second"] == pytest.approx(row["bytes"] / row["us"]["median"] / 1e3)
        assert row["gflops"] == pytest.approx(row["operations"] / row["us"]["median"] / 1e3)
        memory = row["gb_per_second"] / row["bandwidth_gb_per_second"]
        compute = row["gflops"] / row["peak_gflops"]
        if row["fraction_of_bound"] is not None:
            assert row["fraction_of_bandwidth"] == pytest.approx(memory)
            assert row["fraction_of_bound"] == pytest.approx(max(memory, compute))
            assert (row["bound"] == "memory") == (memory >= compute)


def test_bytes_and_operations_are_counted(native: None) -> None:
    rows = kernels.run(request(ops=["linear", "attention"], rows=[3], shapes=["tiny", "128x64"]))["rows"]
    found = {row["op"]: row for row in rows if row["shape"] in ("128x64", "tiny")}
    activations = 3 * (128 + 64)
    assert {op: found[op]["bytes"] for op in (*LINEARS[:2], "linear_mxfp4a8", *PEERS)} == {
        "linear_bf16": 2 * 128 * 64 + 4 * activations,
        "linear_w4a16": 128 * 64 // 2 + 2 * 64 + 4 * activations,
        "linear_mxfp4a8": 128 * 64 // 2 + 64 * 4 + 4 * activations,
        "torch_linear_bf16": 2 * 128 * 64 + 2 * activations,
        "torch_int4pack": 128 * 64 // 2 + 4 * 64 + 2 * activations,
    }
    assert found["linear_w4a8"]["operations"] == 2 * 3 * 128 * 64
    assert found["attention"]["bytes"] == 1024 * 2 * 32 * 2 * 2 + 2 * 3 * 4 * 32 * 4
    assert found["attention"]["operations"] == (1022 + 1023 + 1024) * 4 * 32 * 4


def wrong(right: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that is right but for its last value."""

    def changed(*arguments: Any) -> Any:
        out = right(*arguments)
        values = next(t for t in (out if isinstance(out, tuple) else (out,)) if t is not None)
        values.view(-1)[-1] += 1
        return out

    return changed


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """replace(op): its native kernel is wrong from now on."""

    def apply(op: str) -> None:
        module = pytest.importorskip(f"qspec_kernels.backends.cpp.{op}")
        monkeypatch.setattr(module, op, wrong(getattr(module, op)))
        dispatch.find.cache_clear()

    yield apply
    monkeypatch.undo()
    dispatch.reset()


# rescore has no result of its own: it changes its operand
@pytest.mark.parametrize("op", [*LINEARS, *(op for op in op_case.OPS if op != "rescore")])
def test_a_wrong_kernel_is_not_timed(native: None, replace: Callable[[str], None], op: str) -> None:
    replace(op)
    from qspec_decode.bench.linear_case import LinearCase
    from qspec_decode.bench.op_case import OpCase

    sizes = 1 << 16, 1 << 16
    case = LinearCase(TINY.linears["o"], [op], *sizes) if op in LINEARS else OpCase(TINY, [op], *sizes)
    # recording would refuse the arithmetic that makes it wrong
    contender = next(c for c in unrecorded(case, 2) if c.op == op)
    with pytest.raises(QSpecError, match=f"^{op} .* so it was not timed"):
        contender.check()


def unrecorded(case: Any, rows: int) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rotation, "recorded", lambda self, workspace, call: Timed(lambda: call(0)))
        return case.contenders(rows)


def test_a_wrong_kernel_ends_the_run(native: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "same", lambda name, *_: (_ for _ in ()).throw(QSpecError(f"{name} is wrong")))
    with pytest.raises(QSpecError, match="linear_w4a8 is wrong"):
        kernels.run(request(ops=["linear_w4a8"]))


def test_there_must_be_native_kernels(torch_backend: None) -> None:
    with pytest.raises(KernelUnavailable):
        kernels.run(request(ops=["rmsnorm"]))


def test_the_commit_is_one_of_a_checkout(tmp_path: Path) -> None:
    assert facts.commit(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert facts.commit(tmp_path) is None


def test_the_command(native: None, tmp_path: Path) -> None:
    few = ("--ops", "linear_w4a8,rmsnorm", "--shapes", "tiny", "--m", "2", "--seconds", "0.0001")
    shown = run("bench", "kernels", *few)
    assert shown.exit_code == 0, shown.stderr
    assert "tiny.gate_up" in shown.stdout
    assert re.search(r"\d of (memory|int8|fp32)", shown.stdout)
    path = tmp_path / "kernels.json"
    assert run("bench", "kernels", *few, "--json", str(path)).exit_code == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["op"] for row in rows} == {"linear_w4a8", "rmsnorm", *PEERS}
    assert {row["m"] for row in rows} == {2}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (("--ops", "linear,nothing"), "unknown op 'nothing'", "linear_w4a8"),
        (("--shapes", "llama"), "unknown shape 'llama'", "4096x14336"),
        (("--ops", "rmsnorm", "--shapes", "64x64"), "64x64 has no shape of rmsnorm", "a whole model"),
        (("--m", "1,a"), "--m is '1,a'", "--m 1,8,64"),
        (("--m", "0"), "--m is '0'", "--m 1,8,64"),
        (("--seconds", "0"), "seconds is 0.0; expected more than 0", ""),
        (("--json", "/no/such/place.json"), "whose directory does not exist", "Make it first"),
    ],
)
def test_what_cannot_be_timed_is_said_at_once(options: tuple[str, ...], message: str, hint: str) -> None:
    result = run("bench", "kernels", *options)
    assert result.exit_code == 2
    # with --json a document says so
    said = result.stdout + result.stderr
    assert message in said
    assert hint in said


def test_an_interrupt_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernels, "run", interrupt)
    result = run("bench", "kernels")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert "Traceback" not in result.stderr
