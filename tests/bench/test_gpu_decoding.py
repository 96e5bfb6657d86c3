"""The decoding half of `qspec bench gpu` without a GPU: what comes when, how long, what is noted."""

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from qspec_decode.bench.contenders import LADDERS, Contender
from qspec_decode.bench.gpu import decoding, timing
from qspec_decode.bench.gpu.decode_plan import tasks
from qspec_decode.bench.gpu.decoding import PEER, Decoding
from qspec_decode.bench.passes import Pass
from qspec_decode.output import DecodingOutput
from qspec_decode.stats import SpecDecodingStats
from qspec_kernels import UsageError
from tests.bench.standin import Standin

PROMPTS = [[index] * (3 + index) for index in range(20)]
BF16, MXFP4 = Contender("bf16"), Contender("bf16", ("mxfp4",))
# seconds of a step of plain decoding
STEP = {"bf16": 4.0, "w4a16": 2.0}


class Fake:
    """A model whose drafts all stand, which takes no time and says how much it took.

    Parameters
    ----------
    wrong
        (contender, graphs, batch) -> whether its text is another one.
    """

    prompts = PROMPTS
    seconds = 1.5

    def __init__(self, wrong: Callable[[Contender, bool, int], bool] = lambda *_: False):
        self._wrong = wrong
        self.cleared = 0
        self.decoded: list[tuple[str, bool, int]] = []

    def decoder(self, contender: Contender, graphs: bool) -> Callable[..., DecodingOutput]:
        def decode(rows: Sequence[Sequence[int]], max_new_tokens: int) -> DecodingOutput:
            self.decoded.append((contender.title, graphs, len(rows)))
            k = contender.num_speculative_tokens[0] if contender.drafts else 0
            # the first token is the prefill's
            rounds = -(-(max_new_tokens - 1) // (k + 1))
            seconds = rounds * STEP[contender.target] * (1 if graphs else 2) * (1.5 if k else 1)
            tokens = [[row[0] * 100 + i for i in range(max_new_tokens)] for row in rows]
            if self._wrong(contender, graphs, len(rows)):
                tokens[-1][7:] = [1] * len(tokens[-1][7:])
            return DecodingOutput(
                [], tokens, ["length"] * len(rows), True, contender.target, [(0, 0)] * len(rows),
                [
                    SpecDecodingStats(name, rounds, rounds * k, rounds * k, 0, [rounds] * k, [rounds] * k)
                    for name in contender.drafts
                ],
                rounds, 0.5, seconds, 1000 * len(rows) if graphs else None,
            )  # fmt: skip

        return decode

    def peer(self) -> Callable[..., DecodingOutput]:
        return self.decoder(BF16, graphs=False)

    def steps(self, contender: Contender) -> list[list[Pass]]:
        k = contender.num_speculative_tokens[0] if contender.drafts else 0
        target = [Pass("target", contender.target, width) for width in range(1, k + 2)]
        drafts = [[Pass("target", name, 1, True)] if name != "ngram" else [] for name in contender.drafts]
        return [target, *drafts]

    def passes(self, kinds: Sequence[Pass], batch: int) -> list[timing.Contender]:
        return [
            timing.Contender(kind.precision, "", "", kind.width, lambda _: None, 1, 1000, 0, lambda: None)
            for kind in kinds
        ]

    def clear(self) -> None:
        self.cleared += 1


class Bench:
    """A `Decoding` with its clock, which moves by `each` seconds whenever somebody decodes."""

    def __init__(self, subject: Any, each: float = 0.0):
        self.now, self.said = 0.0, list[str]()
        self.opened: list[str] = []
        self.counted: list[int] = []

        def opened(scale: str) -> Any:
            self.opened.append(scale)
            return subject(scale) if callable(subject) else subject

        def clock() -> float:
            self.now += each
            return self.now

        self.decoding = Decoding(Standin(), opened, self.said.append, clock)

    def run(self, scales: Sequence[str] = ("1b",), batches: Sequence[int] = (2,), until: float = 1e9) -> Any:
        self.decoding.run(scales, batches, until, self.added)
        json.dumps(self.decoding.document, allow_nan=False)
        return self.decoding.document

    def added(self) -> None:
        """Count what is there after each task."""
        document = self.decoding.document
        self.counted.append(len(document["passes"]) + len(document["runs"]) + len(document["failures"]))


def of(document: Any, name: str, **where: Any) -> dict[str, Any]:
    """The run with this name, which is the only one."""
    found = [
        run
        for run in document["runs"]
        if run["name"] == name and all(run[key] == value for key, value in where.items())
    ]
    return found[0]


def test_the_document() -> None:
    subject = Fake()
    document = Bench(subject).run(("1b",), (2, 32))
    assert document["failures"] == document["dropped"] == document["unequal"] == []
    assert document["load_seconds"] == {"1b": 1.5}
    for batch in (2, 32):
        for graphs in (True, False):
            titles = [
                run["name"] for run in document["runs"] if (run["batch"], run["graphs"]) == (batch, graphs)
            ]
            assert {one.title for one in LADDERS} <= set(titles)
        assert of(document, PEER, batch=batch)["peer"]
    run = of(document, MXFP4.title, batch=2, graphs=True)
    # 47 tokens behind the first in ten rounds of 1.5 steps, and without drafts in 47 steps
    assert run["tokens_per_second"] == {"median": 94 / 60, "low": 94 / 60, "high": 94 / 60}
    assert run["speedup_over"]["bf16"]["median"] == pytest.approx(47 / 15)
    assert run["speedup_over"]["w4a16"]["median"] == pytest.approx(47 / 30)
    assert run["num_calls"] == 8
    assert run["num_prompts"] == 16
    assert run["acceptance_rate"] == 1
    assert run["graph_bytes"] == 2000
    assert run["equal"]
    assert run["of_record"], run["not_of_record_because"]
    assert of(document, MXFP4.title, batch=2, graphs=False)["graph_bytes"] is None
    assert of(document, MXFP4.title, batch=32, graphs=True)["num_calls"] == decoding.MIN_CALLS
    # of a task without it, from the one before
    other = of(document, "bf16 <- small", batch=2, graphs=True)["speedup_over"]
    assert other["bf16"]["in_turns"]
    assert not other["w4a16"]["in_turns"]


def test_a_run_is_explained_by_passes_alone() -> None:
    document = Bench(Fake()).run()
    passes = {
        (row["precision"], row["tokens_per_row"], row["draft"]): row["us"]["median"]
        for row in document["passes"]
    }
    run = of(document, MXFP4.title, graphs=True)
    (k,) = run["num_speculative_tokens"]
    c = passes["mxfp4", 1, True] / passes["bf16", 1, False]
    v = passes["bf16", k + 1, False] / passes["bf16", 1, False]
    assert run["c"] == pytest.approx([c])
    assert run["v"] == pytest.approx([v])
    assert run["alpha"] == [1]
    assert run["formula_speedup"] == pytest.approx((k + 1) / (k * c + v))
    # what a table costs is not known, nor how often it proposes something
    assert of(document, "bf16 <- ngram", graphs=True)["formula_speedup"] is None
    plain = of(document, BF16.title, graphs=True)
    (row,) = [row for row in document["passes"] if (row["precision"], row["tokens_per_row"]) == ("bf16", 1)]
    assert plain["pass_over_copy"] == pytest.approx(1 / row["fraction_of_copy"])
    copying = row["bytes"] / row["copy_gb_per_second"] / 1e9
    assert plain["step_over_copy"] == pytest.approx(STEP["bf16"] / copying)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (
            lambda one, graphs, batch: one == MXFP4,
            "bf16 <- mxfp4; w4a16 <- w4a8 at 1b, batch 2, with",
        ),
        (lambda one, graphs, batch: one == BF16 and not graphs, "at 1b, batch 2, without graphs"),
        (lambda one, graphs, batch: one == BF16 and batch == 32, "at 1b, batch 32, with graphs"),
    ],
    ids=["a draft", "graphs", "the batch"],
)
def test_a_text_that_differs_is_found(wrong: Callable[..., bool], where: str) -> None:
    found = Bench(Fake(wrong)).run(("1b",), (2, 32))["unequal"]
    assert found
    assert found[0]["position"] == 7
    assert where in found[0]["what"]
    assert not of(Bench(Fake(wrong)).run(("1b",), (2, 32)), found[0]["name"], equal=False)["equal"]


def test_what_the_budget_leaves_out_is_named() -> None:
    bench = Bench(Fake(), each=1.0)
    document = bench.run(until=40.0)
    everything = [task.what for task in tasks(("1b",), (2,))]
    dropped = [one["what"] for one in document["dropped"]]
    assert 0 < len(dropped) < len(everything)
    assert dropped == everything[-len(dropped) :]
    assert bench.said == [f"decoding: {what} ..." for what in everything[: -len(dropped)]]
    # each task adds something, which is in the document at once
    assert len(bench.counted) == len(bench.said)
    assert [0, *bench.counted] == sorted({0, *bench.counted})
    assert document["runs"]


def test_a_slow_task_ends_after_the_fewest_calls() -> None:
    bench = Bench(Fake())
    bench.decoding.clock = itertools.count(0, 30).__next__
    run = of(bench.run(), MXFP4.title, graphs=True)
    assert run["num_calls"] == decoding.MIN_CALLS
    assert not run["of_record"]
    assert "6 of the 16 prompts" in run["not_of_record_because"]


def test_models_make_room_for_each_other() -> None:
    full = iter([False, True, False])

    def opened(scale: str) -> Fake:
        if next(full, False):
            raise torch.OutOfMemoryError
        return Fake()

    bench = Bench(opened)
    document = bench.run(("8b", "1b"))
    assert document["dropped"] == []
    assert bench.opened[:3] == ["8b", "1b", "1b"]
    assert set(document["load_seconds"]) == {"8b", "1b"}


@pytest.mark.parametrize(
    ("error", "part", "text"),
    [
        (torch.OutOfMemoryError(), "dropped", "not enough memory on the device"),
        (UsageError("the widened model needs 27.0 GB"), "dropped", "needs 27.0 GB"),
        (RuntimeError("illegal address"), "failures", "RuntimeError: illegal address"),
    ],
)
def test_a_task_that_fails_does_not_cost_the_others(error: Exception, part: str, text: str) -> None:
    class Failing(Fake):
        def decoder(self, contender: Contender, graphs: bool) -> Callable[..., DecodingOutput]:
            if not graphs:
                raise error
            return super().decoder(contender, graphs)

        def peer(self) -> Callable[..., DecodingOutput]:
            raise ImportError("no transformers")

    subject = Failing()
    document = Bench(subject).run()
    assert len(document[part]) == 3
    assert all("without graphs" in one["what"] for one in document[part])
    assert all(text in str(one) for one in document[part])
    assert document["skipped_peers"][0]["peer"] == PEER
    assert "ImportError: no transformers" in document["skipped_peers"][0]["reason"]
    assert subject.cleared == len(list(tasks(("1b",), (2,))))
