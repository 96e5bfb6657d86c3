"""`qspec bench train`: a tiny model on a few files, on the CPU."""

import itertools
import json
import math
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qspec_decode import demo, load
from qspec_decode.bench.gpu import acceptance
from qspec_decode.bench.gpu import train as bench
from qspec_decode.demo import corpus, train
from qspec_kernels import UsageError
from tests.decode.command_line import run as command

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(sysconfig.get_path("stdlib"))
    monkeypatch.setattr(corpus, "source_files", lambda: ([root / "argparse.py"], [root / "bisect.py"]))
    monkeypatch.setitem(train.SHAPES, "tiny", TINY)
    monkeypatch.setitem(bench._BATCH, "cpu", 2)
    monkeypatch.setattr(bench, "PASSES", 1)
    monkeypatch.setattr(acceptance, "MIN_PROMPTS", 2)
    monkeypatch.setattr(acceptance, "MAX_GREEDY_TOKENS", 6)


@pytest.fixture
def text() -> corpus.Corpus:
    return corpus.corpus(demo.path("target") / "tokenizer.json")


def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes a second."""
    now, loss = [0.0], train._loss

    def slow(*args: Any) -> torch.Tensor:
        now[0] += 1
        return loss(*args)

    monkeypatch.setattr(train, "_loss", slow)
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])


def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of every step that is taken from here on."""
    found: list[float] = []
    step = torch.optim.AdamW.step

    def noted(self: Any, *args: Any) -> Any:
        found.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    return found


def test_training_lowers_the_loss(text: corpus.Corpus) -> None:
    torch.manual_seed(0)
    model = train.build(TINY)
    reports: list[train.Step] = []
    assert train.fit(model, text.training, train.Length(41, batch=1), reports.append) == 41
    assert [one.number for one in reports] == [1, 21, 41]
    assert reports[0].loss == pytest.approx(math.log(4096), abs=0.3)
    assert reports[-1].loss < reports[0].loss - 0.4


def test_it_ends_with_the_seconds_and_so_does_the_cosine(
    text: corpus.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rates(monkeypatch)
    ticking(monkeypatch)
    taken = train.fit(train.build(TINY), text.training, train.Length(100, 1, seconds=20.0), lambda _: None)
    assert taken == len(found) == 20
    without_warming = [rate / (step + 1) for step, rate in enumerate(found)]
    assert without_warming == sorted(without_warming, reverse=True)
    assert without_warming[-1] < 0.06 * without_warming[0]


def test_the_rate_falls_with_the_width(text: corpus.Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rates(monkeypatch)
    for hidden in (64, 512):
        train.fit(
            train.build(TINY | {"hidden_size": hidden}), text.training, train.Length(1, 1), lambda _: None
        )
    assert found == pytest.approx([2e-3 / 60, 1e-3 / 60])


def test_the_command(tmp_path: Path) -> None:
    out, path = tmp_path / "deep" / "model", tmp_path / "train.json"
    options = ("bench", "train", "--size", "tiny", "--device", "cpu", "--out", str(out), "--json", str(path))
    shown = command(*options)
    assert shown.exit_code == 0, (shown.stderr, shown.exception)
    assert "bits per byte" in shown.stderr
    document = json.loads(path.read_text())
    assert document["gpu"] is None
    assert document["directory"] == str(out)
    model = train.load(out)
    assert document["parameters"] == sum(p.numel() for p in model.parameters())
    assert document["training"]["steps"] == document["card"]["steps"] > 20
    assert document["training"]["loss"][-1][1] < document["training"]["loss"][0][1]
    assert {one["precision"] for one in document["precisions"]} == set(bench.PRECISIONS)
    assert document["card"]["held_out_bits_per_byte"] < 4
    pairs = {(one["target"], one["draft"]): one for one in document["agreement"]}
    assert set(pairs) == {
        ("bf16", "mxfp4"),
        ("bf16", "demo"),
        ("bf16", "demo-small"),
        ("w4a16", "w4a8"),
        ("w4a16", "w4a4"),
    }
    assert pairs["w4a16", "w4a8"]["top1"] > pairs["bf16", "demo-small"]["top1"]
    decoded = {(one["target"], one["draft"]): one for one in document["acceptance"]}
    assert set(decoded) == set(pairs)
    for one in decoded.values():
        assert one["lossless_equal"]
        assert one["num_prompts"] == 2
        assert 1 <= one["mean_acceptance_length"] <= 5
    assert decoded["w4a16", "w4a8"]["per_token_acceptance"] > decoded["bf16", "demo-small"]["acceptance_rate"]
    assert load(out, "w4a16").vocabulary == load("demo", "bf16").vocabulary
    assert [one.name for one in out.parent.iterdir()] == ["model"]

    shown = command(*options)
    assert shown.exit_code == 0
    assert "is there already" in shown.stderr
    again = json.loads(path.read_text())
    assert again["training"] is None
    assert again["agreement"] == document["agreement"]


def test_bits_of_a_precision_are_those_of_transformers(tmp_path: Path, text: corpus.Corpus) -> None:
    train.save(train.build(TINY), text.tokenizer, tmp_path / "model", {})
    piece = text.held_out[:100]
    num_bytes = len(text.tokenizer.decode(piece[1:].tolist()).encode())
    expected = train.bits_per_byte(train.load(tmp_path / "model"), piece, num_bytes)
    found = bench.bits_per_byte(load(tmp_path / "model"), "bf16", text.tokenizer, [piece.tolist()])
    assert found == pytest.approx(expected, rel=1e-3)


def interrupt(call: Callable[..., Any], at: int) -> Callable[..., Any]:
    """Ctrl-C in the call with this number."""
    calls = itertools.count()

    def interrupted(*args: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return call(*args)

    return interrupted


def test_an_interrupt_keeps_what_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_loss", interrupt(train._loss, 3))
    request = bench.Request(1.0, "tiny", tmp_path / "model", "cpu", windows=1)
    with pytest.raises(KeyboardInterrupt):
        bench.run(request, lambda _: None)
    card = json.loads((tmp_path / "model" / "training.json").read_text())
    assert card["interrupted"]
    assert card["held_out_bits_per_byte"] is None
    assert bench.run(request, lambda _: None)["num_windows"] == 1


def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = bench.Request(1.0, "tiny", tmp_path / "model", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(train, "_loss", interrupt(train._loss, 0))
        with pytest.raises(KeyboardInterrupt):
            bench.run(request, lambda _: None)
    monkeypatch.setattr(Path, "rename", interrupt(Path.rename, 0))
    with pytest.raises(KeyboardInterrupt):
        bench.run(request, lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_it_says_how_long_it_would_take(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    shown = command("bench", "train", "--out", str(tmp_path / "model"))
    assert shown.exit_code == 2
    assert "no GPU here; expected one" in shown.stderr
    assert "hours" in shown.stderr
    assert "--device cpu" in shown.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, "size is 'huge'; expected one of target, small, large"),
        ({"minutes": 0.0}, "minutes is 0.0; expected more than 0"),
        ({"minutes": math.nan}, "minutes is nan"),
        ({"device": "tpu", "size": "tiny"}, "device is 'tpu', expected"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench.run(bench.Request(**{"out": tmp_path / "model", **options}), lambda _: None)


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="holds no checkpoint"):
        bench.run(bench.Request(out=tmp_path, device="cpu"), lambda _: None)
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]


def test_windows_are_spread_evenly() -> None:
    stream = np.arange(10 * corpus.SEQUENCE_LENGTH)
    assert [piece[0] // 512 for piece in corpus.windows(stream, 3)] == [0, 4, 8]
    assert [len(piece) for piece in corpus.windows(stream, 100)] == [512] * 10
    assert corpus.windows(stream[:100], 5) == [list(range(100))]
