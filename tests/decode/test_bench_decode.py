"""`qspec bench decode`: who decodes, what passes cost, and what follows from it."""

import json
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from qspec_decode import demo
from qspec_decode.bench import decode
from qspec_decode.bench.contenders import Contender
from qspec_decode.bench.entrants import Ours, forks, parse_ladders, peer_output, rows_of_turn, with_counts
from qspec_decode.commands import bench_decode
from qspec_decode.commands.outcome import Commands
from qspec_decode.load import load
from qspec_decode.model import Transformer
from qspec_decode.output import DecodingOutput
from qspec_decode.speculative_config import Drafting
from qspec_kernels import UsageError, isa

PROMPT = list(range(40, 70))


@pytest.fixture(scope="module")
def model(bundle: Path) -> Transformer:
    return load(bundle / "target", ("bf16", "mxfp4a8", "w4a16"))


@pytest.fixture(scope="module")
def small(bundle: Path) -> Transformer:
    return load(bundle / "small", ("bf16",))


def test_all_prompts_are_used_and_the_first_follow_the_last() -> None:
    prompts = [[1], [2], [3]]
    assert [rows_of_turn(prompts, 2, turn) for turn in range(3)] == [[[1], [2]], [[3], [1]], [[2], [3]]]


def test_forks_are_found_where_they_begin() -> None:
    def output(*rows: list[int]) -> DecodingOutput:
        return peer_output(list(rows), "bf16", 0.0, 1.0)

    reference = [output([1, 2, 3], [4, 5, 6]), output([7, 8, 9], [1, 1, 1])]
    other = [output([1, 2, 3], [4, 0, 0]), output([0, 8, 9], [1, 1])]
    assert list(forks(reference, other)) == [(0, 1, 1), (1, 0, 0), (1, 1, 2)]
    assert not list(forks(reference, reference))


def test_ladders_are_read_as_people_write_them() -> None:
    precisions = ("bf16", "mxfp4a8", "w4a16", "w4a4")
    text = " bf16<-mxfp4 ; bf16 <- mxfp4<-small;w4a16<-w4a4;bf16<-mxfp4<-small:mxfp4"
    found = parse_ladders(text, precisions, of_small=("bf16", "mxfp4a8"))
    titles = ["bf16 <- mxfp4", "bf16 <- mxfp4 <- small", "w4a16 <- w4a4", "bf16 <- mxfp4 <- small:mxfp4"]
    assert [one.title for one in found] == titles
    (own,) = with_counts(found[1], ())
    # where drafting ends early a draft's drafts are few
    below = 2 if isa() in ("amx", "avx512bf16") else 3
    assert (own.num_speculative_tokens[1:], own.ends_early) == ([below], True)
    assert with_counts(found[1], (1, 8)) == [Drafting([1, 3]), Drafting([8, 3])]
    assert with_counts(found[1], (None, 2)) == [own, Drafting([2, 3])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bf16", "'bf16', which has no draft"),
        ("bf16<-w4a8", "'w4a8' in 'bf16<-w4a8'; expected one of bf16, mxfp4a8"),
        ("bf16<-small", "'small' in"),
        ("bf16<-small:bf16", "'small:bf16' in"),
        ("bf16<-medium", "unknown precision 'medium'"),
        ("bf16<-ngram<-mxfp4", "expected it as the last draft"),
        ("ngram<-mxfp4", "expected it as the last draft"),
    ],
)
def test_ladders_that_cannot_run_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_ladders(text, ("bf16", "mxfp4a8"), of_small=())


def test_a_precision_of_the_small_model_must_be_one_that_it_has() -> None:
    with pytest.raises(UsageError, match="'small:w4a8' in") as e:
        parse_ladders("bf16<-small:w4a8", ("bf16", "mxfp4a8"), of_small=("bf16", "mxfp4a8"))
    assert "small, small:bf16, small:mxfp4a8," in e.value.hint


def test_the_small_model_drafts_with_the_precision_that_is_asked_for(
    model: Transformer, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = load(bundle / "small", ("bf16", "mxfp4"))
    asked: list[str] = []
    forward = Transformer.forward

    def watched(
        self: Transformer, ids: Any, rows: Any, positions: Any, cache: Any, precision: str, **given: Any
    ):
        if self is small:
            asked.append(precision)
        return forward(self, ids, rows, positions, cache, precision, **given)

    monkeypatch.setattr(Transformer, "forward", watched)
    plain = Ours(Contender("bf16"), model).decode([PROMPT], 6).token_ids
    for name, precision in (("small", "bf16"), ("small:mxfp4", "mxfp4a8"), ("small:mxfp4a8", "mxfp4a8")):
        asked.clear()
        ours = Ours(Contender("bf16", ("mxfp4", name)), model, small, (2, 2))
        assert ours.decode([PROMPT], 6).token_ids == plain
        assert set(asked) == {precision}
        assert {made.precision for made in ours.steps[2]} == {precision}


class Parrot:
    """A peer that says what plain decoding says, but for one token."""

    name, weights = "parrot", "bf16"

    def __init__(self, model: Transformer):
        self.plain = Ours(Contender("bf16"), model)

    def decode(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> DecodingOutput:
        rows = self.plain.decode(prompts, max_new_tokens).token_ids
        rows[0][1] = (rows[0][1] + 1) % 600
        return peer_output(rows, "bf16", 0.1, 1.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small figures from a small machine."""
    monkeypatch.setattr(decode, "rotation_bytes", lambda: 1 << 16)
    monkeypatch.setattr(decode, "PASS_SECONDS", 0.001)


@pytest.mark.usefixtures("quick")
def test_a_measurement_holds_everyone_against_plain_decoding(
    model: Transformer, small: Transformer, bundle: Path
) -> None:
    prompts = [PROMPT, PROMPT[5:], PROMPT[::-1]]
    subject = decode.Subject("demo", "none", model, small, prompts, [], 0.0)
    ladders = tuple(parse_ladders("bf16<-mxfp4<-small;w4a16<-ngram", model.precisions, ("bf16",)))
    settings = decode.Settings((1, 2), ladders, (2,), 5)
    said: list[str] = []
    document = decode.measure(subject, settings, [Parrot(model)], said.append)
    json.dumps(document, allow_nan=False)
    assert (document["num_prompts"], document["max_new_tokens"]) == (3, 5)
    for batch, count in zip(document["batches"], (1, 2), strict=True):
        runs = {run["name"]: run for run in batch["runs"]}
        assert [name for name in runs if "alone" in name] == [
            f"{precision} alone" for precision in model.precisions
        ]
        for run in runs.values():
            # as many calls as use all prompts, and three at least
            assert len(run["token_ids"]) == 3 * count
            assert all(len(row) == 5 for row in run["token_ids"])
            assert run["peer"] == (run["name"] == "parrot")
        for name in ("bf16 <- mxfp4 <- small, K=2,3", "w4a16 <- ngram, K=2"):
            run = runs[name]
            assert (run["lossless_equal"], run["forks"]) == (True, [])
            assert run["measured_over_predicted"] > 0
            assert run["passes_over_alone"] > 0
            assert run["beside_seconds"] > 0
            assert run["token_ids"] == runs[f"{run['target']} alone"]["token_ids"]
        parrot = runs["parrot"]
        assert [(fork["call"], fork["row"], fork["position"]) for fork in parrot["forks"]] == [
            (call, 0, 1) for call in range(3)
        ]
        # the model's own token is the more probable one
        assert all(fork["gap"] > 0 for fork in parrot["forks"])
        assert "plain decoding's" not in parrot["not_of_record_because"]
        # rows that came again do not make more prompts
        assert "3 of the 16 prompts" in runs["bf16 alone"]["not_of_record_because"]
        timed = {(one["model"], one["precision"], one["tokens_per_row"]) for one in batch["passes"]}
        assert {("target", "bf16", 9), ("target", "w4a16", 3), ("small", "bf16", 1)} <= timed
        for one in batch["passes"]:
            read, share = batch["read_bandwidth"], one["fraction_of_read_bandwidth"]
            assert (read is None) == (share is None) == (isa() == "torch")
            assert share is None or share == pytest.approx(one["bytes_per_second"] / read["median"])
    assert "batch 2, call 3 of 3: parrot, bf16" in said


def test_a_widened_model_is_written_for_peers_and_a_bundled_one_lies_there(
    bundled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Transformer
) -> None:
    def subject(name: str, scale: str) -> decode.Subject:
        return decode.Subject(name, scale, model, None, [], [], 0.0)

    written: list[tuple[Any, ...]] = []
    monkeypatch.setattr(decode, "write_checkpoint", lambda *args: (written.append(args), args[2])[1])
    assert subject("demo", "none").checkpoint(tmp_path) == demo.path()
    assert subject(str(tmp_path), "x").checkpoint(tmp_path) == tmp_path
    assert not written
    wide = tmp_path / "demo-1b"
    assert subject("demo", "1b").checkpoint(tmp_path) == wide
    assert written == [(demo.path(), "1b", wide)]
    assert subject("demo", "1b").small_checkpoint(tmp_path) is None
    with_sibling = decode.Subject("demo", "1b", model, model, [], [], 0.0)
    assert with_sibling.small_checkpoint(tmp_path) == tmp_path / "demo-small-1b"
    assert written[1] == (demo.path("small"), "1b", tmp_path / "demo-small-1b")


def app() -> typer.Typer:
    alone = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    alone.command()(bench_decode.decode)
    alone.command("other")(lambda: None)
    return alone


@pytest.mark.usefixtures("bundled", "quick")
def test_the_command_prints_tables_and_writes_a_document(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    options = ["--scale", "none", "--prompts", "2", "--max-new-tokens", "4", "--batch", "2", "-K", "2"]
    options += ["--ladders", "bf16<-mxfp4;bf16<-small", "--peers", "none", "--json", str(path)]
    result = CliRunner().invoke(app(), ["decode", *options])
    assert result.exit_code == 0, (result.stdout, result.stderr)
    document = json.loads(path.read_text())
    assert [batch["batch"] for batch in document["batches"]] == [2]
    assert document["skipped_peers"] == []
    for text in ("Batch 2: ladders", "bf16 <- mxfp4", "w4a16 alone", "K=8", "no figure of record"):
        assert text in result.stdout


@pytest.mark.usefixtures("bundled")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "/no/such/place/x.json"], "whose directory does not exist"),
        (["some/model", "--scale", "1b"], "--scale 1b is about the demo model"),
        (["-K", "1,9"], "-K is '1,9', expected numbers from 1 to 8"),
        (["--batch", "1,two"], "--batch is '1,two'"),
        (["--peers", "vllm"], "--peers has 'vllm', expected transformers, llama.cpp or llama-server"),
        (["--llama-server", "/no/such/server"], "/no/such/server, which is no program"),
        (["--scale", "none", "--ladders", "bf16"], "which has no draft"),
        (["--scale", "none", "--prompts", "99"], "--prompts is 99, expected 1 to"),
    ],
)
def test_options_that_cannot_be_are_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app(), ["decode", *options])
    assert result.exit_code == 2
    assert message in result.stderr + result.stdout


def test_kill_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends a command as Ctrl-C does, and afterwards it is handled as before."""
    handled: list[int] = []

    def handler(number: int, _: object) -> None:
        handled.append(number)

    def prepare(*_: object, **__: object) -> None:
        (scratch,) = tmp_path.iterdir()
        (scratch / "model.safetensors").write_bytes(b"weights")
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(decode, "prepare", prepare)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        result = CliRunner().invoke(app(), ["decode", "--peers", "none"])
        assert not handled
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 130
    assert result.stderr.rstrip().endswith("interrupted")
    assert not list(tmp_path.iterdir())
    assert handled == [signal.SIGTERM]
