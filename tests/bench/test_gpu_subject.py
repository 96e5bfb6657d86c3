"""What decodes in `qspec bench gpu`, on the CPU: the demo, transformers on its weights, the command."""

import json
from pathlib import Path

import pytest
import torch

import qspec_decode
from qspec_decode.bench.contenders import Contender
from qspec_decode.bench.gpu import decoding, run, subject, timing, transformers_peer
from qspec_decode.bench.gpu.decode_plan import Task
from qspec_decode.bench.gpu.decoding import Decoding
from qspec_decode.bench.gpu.subject import Demo, demo_at
from qspec_decode.bench.gpu.timing import Bandwidth
from qspec_decode.bench.gpu.transformers_peer import Compiled
from qspec_decode.demo.widen_plan import WidenPlan
from tests.bench.standin import Standin, small
from tests.decode.command_line import run as command

LADDERS = (
    Contender("bf16", ("mxfp4",)),
    Contender("bf16", ("mxfp4", "small")),
    Contender("w4a16", ("w4a8",)),
    Contender("bf16", ("ngram",)),
)
__all__ = ["small"]

NAMES = {"mxfp4": "mxfp4a8"}


@pytest.fixture(scope="module")
def demo() -> Demo:
    return demo_at("none", torch.device("cpu"))


def test_everyone_decodes_the_same_with_rounds_of_fixed_shapes_and_without(demo: Demo) -> None:
    rows = [demo.prompts[0], demo.prompts[1][:40]]
    for target in ("bf16", "w4a16"):
        plain = demo.decoder(Contender(target), graphs=False)(rows, 6)
        assert plain.graph_bytes is None
        assert [len(row) for row in plain.token_ids] == [6, 6]
        for one in (Contender(target), *(one for one in LADDERS if one.target == target)):
            found = demo.decoder(one, graphs=True)(rows, 6)
            assert found.token_ids == plain.token_ids, one.title
            assert found.graph_bytes, one.title
            assert [level.name for level in found.levels] == [NAMES.get(name, name) for name in one.drafts]
            assert demo.decoder(one, graphs=False)(rows, 6).token_ids == plain.token_ids
    demo.clear()
    assert demo.model.graphs.num_bytes == 0


def test_passes_are_those_of_a_ladder(demo: Demo) -> None:
    levels = demo.steps(LADDERS[1])
    kinds = [kind for level in levels for kind in (level[:1] + level[-1:])]
    made = demo.passes(kinds, 2)
    assert [one.m for one in made] == [2, 10, 2, 8, 2, 4]
    for kind, one in zip(kinds, made, strict=True):
        logits = one.call(0)
        assert isinstance(logits, torch.Tensor)
        assert logits.shape == (one.m, 4096)
        assert one.op == f"{kind.owner} {kind.precision}"
    assert made[2].num_bytes < made[0].num_bytes / 3 < made[4].num_bytes * 9
    device = Standin()
    rows = timing.rows(device, made, Bandwidth(device))
    assert all(row["fraction_of_copy"] > 0 for row in rows)


def test_transformers_decodes_the_widened_weights(demo: Demo) -> None:
    """What it says is the small model's text, as the wide one's has to be: weights are in their places."""
    rows = [demo.prompts[0], demo.prompts[1][:40]]
    expected = demo.decoder(Contender("bf16"), graphs=False)(rows, 5).token_ids
    model = qspec_decode.load("demo", "bf16")
    wide = subject.widen(model, WidenPlan(2, 2, 2, 7, 5000))
    for one in (model, wide):
        peer = Compiled(one)
        found = peer.decode(rows, 5)
        assert found.token_ids == expected
        assert found.decode_seconds > 0
        head = one.sets["bf16"].head
        assert isinstance(head, torch.Tensor)
        assert peer._model.lm_head.weight.data_ptr() == head.data_ptr()


def test_transformers_that_compiles_nothing_is_no_peer(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_peer, "_compiles", lambda device: True)
    monkeypatch.setattr(decoding, "tasks", lambda *_: [Task("peer", "none", 1)])
    monkeypatch.setattr(decoding, "MAX_GREEDY_TOKENS", 2)
    made = Decoding(Standin(), lambda scale: demo, lambda _: None, lambda: 0.0)
    made.run(["none"], [1], 1.0)
    assert made.document["runs"] == made.document["failures"] == []
    (skipped,) = made.document["skipped_peers"]
    assert skipped["reason"].startswith("transformers, compiled, at none, batch 1: RuntimeError: generate of")
    assert "compiled nothing" in skipped["reason"]
    # as soon as it has compiled something it is one
    peer = Compiled(demo.model)
    peer._model._compiled_call = peer._model.__call__
    assert peer.decode(demo.prompts[:1], 2).num_tokens == 2


@pytest.mark.usefixtures("small")
def test_the_command_decodes(demo: Demo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = [Task("passes", "none", 2), Task("runs", "none", 2, LADDERS[:1]), Task("peer", "none", 2)]
    monkeypatch.setattr("qspec_decode.bench.gpu.decoding.tasks", lambda *_: few)
    monkeypatch.setattr("qspec_decode.bench.gpu.decoding.MIN_PROMPTS", 2)
    for name in ("qspec_decode.bench.gpu.decoding.MAX_GREEDY_TOKENS", "qspec_decode.bench.record.MIN_TOKENS"):
        monkeypatch.setattr(name, 4)
    monkeypatch.setattr("qspec_decode.bench.gpu.device.Gpu", Standin)
    monkeypatch.setattr(run, "demo_at", lambda scale, device: demo)
    path = tmp_path / "gpu.json"
    options = ("--ops", "linear_w4a8", "--shapes", "256x64", "--m", "2", "--json", str(path))
    shown = command("bench", "gpu", *options, "--scales", "none", "--batch", "2")
    assert shown.exit_code == 0, (shown.stderr, shown.exception)
    document = json.loads(path.read_text())
    assert document["rows"]
    decoded = document["decoding"]
    assert decoded["failures"] == decoded["unequal"] == decoded["skipped_peers"] == []
    assert {run["name"] for run in decoded["runs"]} == {"bf16 alone", "bf16 <- mxfp4", "transformers"}
    assert all(run["equal"] for run in decoded["runs"] if not run["peer"])
    for text in ("bf16 <- mxfp4", "transformers", "passes alone", "over w4a16"):
        assert text in shown.stderr

    assert command("bench", "gpu", *options).exit_code == 0
    assert "decoding" not in json.loads(path.read_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--scales", "9b"), "unknown scale '9b'"), (("--batch", "1,x"), "--batch is '1,x'")],
)
def test_what_cannot_be_decoded_is_said_at_once(options: tuple[str, ...], message: str) -> None:
    shown = command("bench", "gpu", *options)
    assert shown.exit_code == 2
    assert message in shown.stderr
