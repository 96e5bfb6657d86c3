"""What passes cost, how many a ladder makes, and the speed-up that follows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec_decode.bench import cost
from qspec_decode.bench.contenders import Contender
from qspec_decode.bench.entrants import Ours
from qspec_decode.bench.explain import Costs, kinds_of
from qspec_decode.bench.passes import Pass, Warm, outside_kernels, time_passes
from qspec_decode.bench.peaks import Peak
from qspec_decode.bench.record import Spread
from qspec_decode.bench.timing import Timed
from qspec_decode.bench.turns import take_turns
from qspec_decode.load import load
from qspec_decode.model import Transformer
from qspec_decode.stats import SpecDecodingStats
from qspec_kernels import isa

PROMPT = list(range(40, 70))


@pytest.fixture(scope="module")
def model(bundle: Path) -> Transformer:
    return load(bundle / "target", ("bf16", "mxfp4a8", "w4a16"))


def stats(drafted: Sequence[int], accepted: Sequence[int]) -> SpecDecodingStats:
    level = SpecDecodingStats("draft")
    for d, a in zip(drafted, accepted, strict=True):
        level.record(torch.tensor([d]), torch.tensor([a]))
    return level


def test_everyone_has_a_turn_in_every_round_and_another_one_is_first() -> None:
    turns = list(take_turns("abc", 4))
    assert "".join(one for _, one in turns) == "abcbcacababc"
    assert [index for index, _ in turns] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_the_formula_is_the_papers() -> None:
    alpha, k = 0.9, 4
    assert cost.expected_tokens(alpha, k) == pytest.approx((1 - alpha ** (k + 1)) / (1 - alpha))
    assert cost.expected_tokens(1.0, 3) == 4
    assert cost.expected_speedup(alpha, k, 0.25, 1.1) == pytest.approx(4.0951 / 2.1)


@pytest.mark.parametrize("drafts", [("mxfp4",), ("mxfp4", "ngram"), ("mxfp4", "w4a8"), ("ngram",)])
def test_passes_are_counted_as_they_were_made(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, drafts: tuple[str, ...]
) -> None:
    made: list[tuple[str, int]] = []
    forward = Transformer.forward

    def spy(self: Transformer, ids: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        made.append((rest[3], len(ids)))
        return forward(self, ids, *rest, **options)

    one = Ours(Contender("bf16", drafts), model, None, (3, 2)[: len(drafts)])
    monkeypatch.setattr(Transformer, "forward", spy)
    out = one.decode([PROMPT], 40)
    # the prompt itself is longer than any verification
    widths = [(precision, width) for precision, width in made if width < len(PROMPT)]
    rounds = cost.rounds_by_width(out.levels, 39)
    assert len(rounds) == len(one.steps)
    for counts, kinds in zip(rounds, one.steps, strict=True):
        found = [widths.count((kind.precision, kind.width)) for kind in kinds]
        if kinds:
            assert counts == found[: len(counts)]
            assert not any(found[len(counts) :])


def test_the_predicted_time_is_every_pass_at_its_own_cost() -> None:
    # two rounds of 4 drafts, one of 2, one without any: 10 drafts, 6 of them stand, 4 passes verify
    level = stats([4, 4, 2, 0], [4, 1, 1, 0])
    rounds = cost.rounds_by_width([level], 10)
    assert rounds == [[1, 0, 1, 0, 2], [10]]
    assert cost.seconds_of(rounds, [[1.0, 2.0, 3.0, 4.0, 5.0], [0.25]]) == 1 + 3 + 10 + 2.5


def test_a_ladder_is_explained_by_its_passes_and_its_acceptance(model: Transformer) -> None:
    one = Ours(Contender("bf16", ("mxfp4",)), model, None, (4,))
    kinds = kinds_of([one])
    assert {kind.width for kind in kinds if kind.precision == "bf16"} == set(range(1, 10))
    assert [kind for kind in kinds if kind.draft] == [Pass("target", "mxfp4a8", 1, draft=True)]
    seconds = {kind: 0.3 if kind.draft else 1 + (kind.width - 1) / 40 for kind in kinds}
    costs = Costs({kind: Spread(s, s, s) for kind, s in seconds.items()})
    found = costs.explain(one.steps, [stats([4] * 20, [4] * 20)], 100)
    assert (found["c"], found["v"], found["alpha"]) == ([0.3], [1.1], [1.0])
    # nothing was refused, so counting and the formula say the same
    assert found["predicted_speedup"] == pytest.approx(5 / 2.3)
    assert found["formula_speedup"] == pytest.approx(5 / 2.3)
    assert [one["k"] for one in found["by_k"]] == list(range(1, 9))
    assert found["by_k"][3]["expected_speedup"] == pytest.approx(5 / 2.3)
    assert found["by_k"][0]["expected_speedup"] == pytest.approx(2 / (0.3 + 1.025))


def test_the_formula_is_not_for_tables_and_deeper_ladders(model: Transformer) -> None:
    for drafts, counts in ((("ngram",), (3,)), (("mxfp4", "small"), (4, 3))):
        one = Ours(Contender("bf16", drafts), model, model, counts)
        costs = Costs({kind: Spread(1.0, 1.0, 1.0) for kind in kinds_of([one])})
        levels = [stats([3] * 4, [3] * 4)] + [stats([2] * 4, [2] * 4)] * (len(drafts) - 1)
        found = costs.explain(one.steps, levels, 16)
        assert (found["formula_speedup"], found["by_k"]) == (None, [])
        # a table costs nothing; mxfp4 makes its 12 drafts in 4 passes, small makes 8 in 8
        assert found["predicted_speedup"] == pytest.approx(16 / (4 if drafts == ("ngram",) else 16))
        assert len(found["c"]) == len(found["v"]) == len(found["alpha"]) == len(drafts)


def test_levels_are_timed_as_they_run(model: Transformer) -> None:
    one = Ours(Contender("bf16", ("mxfp4", "small")), model, model, (4, 2))
    assert one.name == "bf16 <- mxfp4 <- small, K=4,2"
    target, middle, bottom = one.steps
    assert target == [Pass("target", "bf16", width) for width in range(1, 6)]
    assert middle == [Pass("target", "mxfp4a8", width, draft=True) for width in range(1, 4)]
    assert bottom == [Pass("small", "bf16", 1, draft=True)]


def test_passes_are_timed_over_a_cache_that_stays_as_it_is(model: Transformer) -> None:
    warm = Warm(model, "bf16", [PROMPT, PROMPT[::-1]], 50)
    kinds = [Pass("target", "bf16", 5), Pass("target", "mxfp4a8", 1, draft=True)]
    expected = [warm.forward(kind).clone() for kind in kinds]
    assert [tuple(logits.shape) for logits in expected] == [(10, 600), (2, 600)]
    read: list[int] = []
    reading = Peak("memory", Timed(lambda: read.append(1)), 1000)
    found, bandwidth = time_passes({"target": warm}, kinds, 0.001, reading)
    assert list(found) == kinds
    assert all(0 < spread.low <= spread.median <= spread.high for spread in found.values())
    assert len(read) >= 5
    assert bandwidth is not None
    assert bandwidth.low <= bandwidth.median <= bandwidth.high
    assert time_passes({"target": warm}, kinds[:1], 0.001, None)[1] is None
    assert all(torch.equal(warm.forward(kind), old) for kind, old in zip(kinds, expected, strict=True))


@pytest.mark.skipif(isa() == "torch", reason="no native kernels to record")
def test_what_is_timed_as_kernels_is_the_pass_itself(model: Transformer) -> None:
    warm = Warm(model, "bf16", [PROMPT], 50)
    kind = Pass("target", "bf16")
    program = warm.program(kind)
    assert program is not None
    logits = warm.forward(kind)
    expected = logits.clone()
    logits.zero_()
    program.replay()
    assert torch.equal(logits, expected)
    (found,) = outside_kernels(warm, [kind], 0.001)
    assert found["outside_seconds"] == found["pass_seconds"] - found["kernel_seconds"]
