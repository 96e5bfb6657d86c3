"""What `qspec demo` measures, in how much time, and what it says meanwhile."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from qspec_decode.bench.contenders import LADDERS, Arena
from qspec_decode.commands import demo as command
from qspec_decode.demo import run
from qspec_decode.demo.widen_plan import SCALES, Scale
from tests.decode import command_line
from tests.decode.test_progress import Terminal

pytestmark = pytest.mark.usefixtures("bundled")

TURNS = len(LADDERS) + 2
"""Every ladder, and two targets alone."""


class Clock:
    """Stands for the module `time`; it goes only where a test makes it go."""

    def __init__(self, now: float):
        self.now = now

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("deadline", "count"),
    [
        (None, 4),
        (100.0, 4),
        # the second takes longer than the first, and is what is expected of the others
        (70.0, 4),
        (69.0, 3),
        (50.0, 3),
        (49.0, 2),
        (20.0, 2),
        (19.0, 1),
        # one is always run
        (1.0, 1),
    ],
)
def test_prompts_are_begun_while_the_slowest_would_fit(
    monkeypatch: pytest.MonkeyPatch, deadline: float | None, count: int
) -> None:
    monkeypatch.setattr(run, "time", clock := Clock(0.0))
    begun = 0
    for (seconds,) in run._until(deadline, [[10], [20], [20], [20]]):
        begun += 1
        clock.now += seconds
    assert begun == count


def test_the_warm_up_and_every_run_count_against_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = run.prepare("none", None, 2, lambda _: None)
    monkeypatch.setattr(run, "time", clock := Clock(1000.0))
    decode = Arena.decode

    def a_second(*arguments: Any, **options: Any) -> Any:
        clock.now += 1
        return decode(*arguments, **options)

    monkeypatch.setattr(Arena, "decode", a_second)
    enough = clock.now + TURNS + 2 * 2 * TURNS
    assert run.measure(prepared, enough, lambda _: None)["num_prompts"] == 2
    clock.now = 1000.0
    assert run.measure(prepared, enough - 0.5, lambda _: None)["num_prompts"] == 1


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Preparing takes 50 seconds, measuring none; the list gets the deadlines."""
    monkeypatch.setattr(command, "time", clock := Clock(7.0))
    deadlines: list[float | None] = []

    def prepare(*_: Any) -> Any:
        clock.now += 50
        return SimpleNamespace()

    def measure(_: Any, deadline: float | None, say: Any) -> dict[str, Any]:
        deadlines.append(deadline)
        say("prompt 2: bf16 <- small, greedy")
        return {}

    monkeypatch.setattr(run, "prepare", prepare)
    monkeypatch.setattr(run, "measure", measure)
    return deadlines


def test_loading_and_widening_count_against_the_90_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = stand_in(monkeypatch)
    results = [command_line.run("demo", "--json"), command_line.run("demo", "--json", "--prompts", "3")]
    assert deadlines == [97.0, None]
    for result in results:
        assert json.loads(result.stdout) == {}
        assert result.stderr == ""


def test_a_terminal_sees_what_is_being_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    command.demo("none", None, 2, as_json=True)
    assert "loading" in terminal.getvalue()
    assert "prompt 2: bf16 <- small, greedy; 50 of 90 s" in terminal.getvalue()
    assert json.loads(capsys.readouterr().out) == {}


def test_every_step_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES, "0.5b", Scale(256, 512, 3))
    said: list[str] = []
    prepared = run.prepare("0.5b", 1, 3, said.append)
    assert said == ["comparing precisions on held-out text ...", "widening to 0.5b ..."]
    said.clear()
    run.measure(prepared, None, said.append)
    assert said[0] == "warming up"
    assert len(said) == 1 + 2 * TURNS
    assert "prompt 1 of 1: bf16 <- mxfp4 <- small, greedy" in said
    assert "prompt 1 of 1: w4a16 alone, sampled at 0.8" in said


def test_the_bound_of_a_run_is_its_acceptance_in_bytes() -> None:
    prepared = run.prepare("none", 2, 24, lambda _: None)
    found = run.measure(prepared, None, lambda _: None)["runs"]
    for one in found:
        target, *drafts = one["bytes_per_pass"]
        assert len(drafts) == len(one["draft"])
        if one["draft"] == ["mxfp4"]:
            # 4 bits and a scale of 8 for 32 weights, and the output matrix is drafted with in 4 bits too
            assert drafts[0] / target == pytest.approx(4.25 / 16, rel=0.02)
            passes = one["levels"][0]["num_draft_tokens"]
            plain = one["num_tokens"] - len(one["token_ids"])
            read = one["num_target_steps"] * target + passes * drafts[0]
            assert one["bound"] == pytest.approx(plain * target / read)
        if one["draft"] == ["w4a8"]:
            assert drafts == [target]
            assert one["bound"] <= 1
        if one["draft"] == ["ngram"]:
            assert drafts == [0]
            assert one["bound"] >= 1


@pytest.mark.parametrize("spoiled", [0, 7], ids=["one", "all"])
def test_the_reasons_stand_with_the_ladders_they_concern(spoiled: int) -> None:
    titles = [contender.title for contender in LADDERS]
    runs = [{"title": t, "of_record": False, "not_of_record_because": "scale none"} for t in titles]
    if not spoiled:
        runs = [one | {"of_record": True} for one in runs]
    runs[1] |= {"of_record": False, "not_of_record_because": "12% repeated"}
    expected = {"12% repeated": [titles[1]]}
    if spoiled:
        expected["scale none"] = [titles[0], *titles[2:]]
    assert command._reasons(runs) == expected
