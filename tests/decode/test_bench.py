"""What a figure of record is, and the numbers beside it."""

import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from qspec_decode import progress
from qspec_decode.bench import bound, record
from qspec_decode.bench.agreement import Voice, agreement
from qspec_decode.bench.contenders import LADDERS, Contender, interleave
from qspec_decode.bench.document import run_document
from qspec_decode.output import DecodingOutput
from qspec_decode.stats import SpecDecodingStats
from tests.decode.test_progress import Terminal


def output(tokens: list[list[int]], seconds: float, steps: int, **changes: Any) -> DecodingOutput:
    return DecodingOutput(
        sequences=[],
        token_ids=tokens,
        finish_reasons=["length"] * len(tokens),
        lossless=True,
        reference="bf16",
        seeds=[(0, row) for row in range(len(tokens))],
        num_target_steps=steps,
        decode_seconds=seconds,
        **changes,
    )


def stats(
    drafted: list[int], accepted: list[int], name: str = "mxfp4a8", **times: float
) -> SpecDecodingStats:
    result = SpecDecodingStats(name, **times)
    for d, a in zip(drafted, accepted, strict=True):
        result.record([d], [a])
    return result


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        ([[]], 0.0),
        ([[1, 2, 3]], 0.0),
        ([list(range(20))], 0.0),
        ([[7] * 48], 40 / 41),
        ([[*range(8), *range(8)]], 1 / 9),
        # a repetition across rows is none
        ([list(range(20)), list(range(20))], 0.0),
        ([list(range(15)), [7] * 15], 7 / 16),
    ],
)
def test_repeated_8grams_are_counted_within_each_row(rows: list[list[int]], share: float) -> None:
    assert record.repeated_8gram_share(rows) == pytest.approx(share)


def made_run(rows: list[list[int]], temperature: float = 0.0, equal: bool = True) -> dict[str, Any]:
    """The document of a run against plain decoding, which says the same or not."""
    plain = rows if equal else [[*row[:-1], -1] for row in rows]
    return run_document(
        [output([row], 1.0, 1, levels=[stats([4], [4])]) for row in rows],
        [output([row], 2.0, 1) for row in plain],
        drafts=["mxfp4"],
        temperature=temperature,
        decode=None,
        load_seconds=1.0,
    )


ROW = list(range(48))
# 5 of 48 - 7 8-grams repeat: 12 %, and 4 are just below 10 %
LOOPING, STRAYING = [*range(36), *range(12)], [*range(37), *range(11)]


@pytest.mark.parametrize(
    ("run", "scale", "reasons"),
    [
        (made_run([ROW] * 16), "1b", []),
        (made_run([STRAYING] * 16), "1b", []),
        (made_run([ROW[:16]] * 16), "1b", []),
        (made_run([list(range(500))] * 16, 0.8), "0.5b", []),
        # sampled text is another draw, so it proves nothing that it differs
        (made_run([ROW] * 16, 0.8, equal=False), "0.5b", []),
        (made_run([ROW] * 15), "1b", ["15 of the 16 prompts it takes"]),
        (made_run([ROW] * 16), "none", ["scale none fits in the processor's caches"]),
        (made_run([ROW] * 15 + [ROW[:15]]), "1b", ["15 new tokens of a prompt, too few to time"]),
        (made_run([ROW] * 15 + [list(range(49))]), "1b", ["49 greedy tokens, at most 48 count"]),
        (made_run([LOOPING] * 16), "1b", ["12.2% repeated 8-grams, at most 10% count"]),
        (made_run([LOOPING] * 16, 0.8), "1b", ["12.2% repeated 8-grams, at most 10% count"]),
        (made_run([ROW] * 16, 0.7), "1b", ["sampled at 0.7, 0.8 counts"]),
        (made_run([ROW] * 16, equal=False), "1b", ["the greedy text is not plain decoding's"]),
        (
            made_run([ROW[:12]] * 2),
            "none",
            ["2 of the 16 prompts", "scale none", "12 new tokens of a prompt, too few to time, at least 16"],
        ),
    ],
)
def test_a_figure_of_record_says_why_it_is_none(run: dict[str, Any], scale: str, reasons: list[str]) -> None:
    found = [reason for reason in record.why_not_of_record(run, scale).split("; ") if reason]
    assert len(found) == len(reasons), found
    assert all(part in whole for part, whole in zip(reasons, found, strict=True)), found


def test_spread_is_median_and_quartiles() -> None:
    assert record.spread([2.0]) == record.Spread(2.0, 2.0, 2.0)
    assert record.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == record.Spread(3.0, 2.0, 4.0)


def test_merging_statistics_equals_one_longer_run() -> None:
    first, second = (
        stats([4, 4], [4, 1], draft_time=1.0),
        stats([2, 3], [2, 0], draft_time=2.0, verify_time=3.0),
    )
    assert record.merge([[first], [second]]) == [
        stats([4, 4, 2, 3], [4, 1, 2, 0], draft_time=3.0, verify_time=3.0)
    ]


def test_the_bound_is_of_bytes_and_knows_no_clock() -> None:
    # 100 plain steps of 100 bytes; 20 rounds of 4 drafts, each a pass over 25 bytes
    for seconds in (0.001, 1000.0):
        level = stats([4] * 20, [4] * 20, draft_time=seconds, verify_time=seconds)
        assert bound.byte_bound(20, 100, [level], [100, 25]) == pytest.approx(10000 / (20 * 100 + 80 * 25))
    # a table is free, and where it has nothing to propose nothing is gained
    assert bound.byte_bound(20, 100, [stats([4] * 20, [4] * 20)], [100, 0]) == pytest.approx(5.0)
    assert bound.byte_bound(10, 10, [stats([], [])], [100, 0]) == pytest.approx(1.0)
    assert bound.byte_bound(0, 0, [stats([], [])], [100, 25]) == 0.0


def test_the_byte_bound_counts_the_passes_of_a_middle_level() -> None:
    # the middle level made 40 drafts with 10 of its own drafts standing: 30 passes of it, 16 below it
    levels = [stats([4] * 10, [4] * 10), stats([2] * 8, [2] * 5 + [0] * 3, "small")]
    found = bound.byte_bound(10, 50, levels, [100, 25, 2])
    assert found == pytest.approx(50 * 100 / (10 * 100 + 30 * 25 + 16 * 2))


def test_contenders_take_turns_and_nobody_is_always_first() -> None:
    calls: list[tuple[Contender, float, int]] = []
    told = []

    def decode(contender: Contender, prompt: Sequence[int], temperature: float, seed: int) -> DecodingOutput:
        calls.append((contender, temperature, seed))
        return output([[*prompt, seed]], 1.0, 1)

    series = interleave(decode, LADDERS, (0.0, 0.8), [[5], [6], [7]], lambda *turn: told.append(turn))
    count = len(series)
    assert count == 2 * (len(LADDERS) + 2)
    assert all([out.token_ids for out in s.outputs] == [[[5, 0]], [[6, 1]], [[7, 2]]] for s in series)
    assert [(seed, contender, t) for contender, t, seed in calls] == told
    turns = [calls[i * count : (i + 1) * count] for i in range(3)]
    everyone = {(s.contender, s.temperature) for s in series}
    assert all({(contender, t) for contender, t, _ in turn} == everyone for turn in turns)
    assert len({turn[0][0] for turn in turns}) == 3


def test_a_run_document_compares_call_by_call() -> None:
    level = stats([4], [4])
    fast = [output([[1, 2, 3]], 0.5, 1, levels=[level]), output([[4, 5, 6]], 1.0, 1, levels=[level])]
    plain = [output([[1, 2, 3]], 2.0, 2), output([[4, 5, 7]], 2.0, 2)]
    found = run_document(fast, plain, drafts=["mxfp4"], temperature=0.0, decode=str, load_seconds=1.0)
    assert (found["speedup"], found["speedup_quartiles"]) == (3.0, [2.5, 3.5])
    assert (found["tokens_per_second"], found["baseline_tokens_per_second"]) == (3.0, 1.0)
    assert found["lossless_equal"] is False
    assert found["levels"][0]["num_draft_tokens"] == 8
    assert (found["num_tokens"], found["text"]) == (6, ["[1, 2, 3]", "[4, 5, 6]"])
    sampled = run_document(fast, plain, drafts=["mxfp4"], temperature=0.8, decode=None, load_seconds=1.0)
    assert sampled["lossless_equal"] is None
    assert sampled["text"] is None
    alone = run_document(plain, None, drafts=[], temperature=0.0, decode=str, load_seconds=1.0)
    assert {alone[k] for k in ("speedup", "baseline_tokens_per_second", "lossless_equal")} == {None}


class Tabular:
    """Two precisions whose logits depend on the last token only."""

    vocab_size, max_positions, eos_token_ids, precisions = 4, 64, (), ("bf16", "w4a8")

    def __init__(self) -> None:
        rows = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25, 0.5, 0.125, 0.125]])
        self.tables = {"bf16": rows[[0, 0, 0, 0]].log(), "w4a8": rows[[0, 1, 0, 1]].log()}

    def new_cache(self, batch_size: int, capacity: int, precision: str) -> None:
        return None

    def forward(self, ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self.tables[_[3]][ids]


def test_agreement_is_the_mean_over_positions() -> None:
    model: Any = Tabular()
    target, draft = Voice(model, "bf16", "bf16"), Voice(model, "w4a8", "w4a8", draft=True)
    (found,) = agreement(target, [draft], [[0, 1], [2, 3, 1]], temperature=1.0)
    # tokens 0 and 2 agree wholly, 1 and 3 swap a half and a quarter
    assert found.num_positions == 5
    assert found.top1 == pytest.approx(2 / 5)
    assert found.sampled == pytest.approx((2 * 1 + 3 * 0.75) / 5)


def test_agreement_shows_its_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = Tabular()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", -1.0)
    agreement(Voice(model, "bf16", "bf16"), [Voice(model, "w4a8", "w4a8")], [[0, 1], [2, 3]])
    assert "comparing drafts with bf16" in terminal.getvalue()
