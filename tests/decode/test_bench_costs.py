"""What passes cost, how many a ladder makes, and the speed-up that follows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec_decode.bench import cost
from qspec_decode.bench.clock import Call, Clocked, Made, noted
from qspec_decode.bench.contenders import Contender
from qspec_decode.bench.entrants import Ours, peer_output
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


@pytest.fixture(scope="module")
def small(bundle: Path) -> Transformer:
    return load(bundle / "small", ("bf16",))


def stats(drafted: Sequence[int], accepted: Sequence[int]) -> SpecDecodingStats:
    level = SpecDecodingStats("draft")
    for d, a in zip(drafted, accepted, strict=True):
        level.record([d], [a])
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


@pytest.mark.parametrize("drafts", [(), ("mxfp4",), ("mxfp4", "ngram"), ("mxfp4", "small"), ("small",)])
def test_passes_of_decoding_are_noted_and_those_of_the_prefill_are_not(
    model: Transformer, small: Transformer, drafts: tuple[str, ...]
) -> None:
    made: list[Made] = []
    models = Clocked(model, "target", made), Clocked(small, "small", made)
    one = Ours(Contender("bf16", drafts), *models, (3, 2)[: len(drafts)])
    call = noted(lambda: one.decode([PROMPT], 40), made)
    assert (
        call.output.token_ids
        == Ours(one.contender, model, small, one.num_speculative_tokens).decode([PROMPT], 40).token_ids
    )
    prefills = [pass_ for pass_ in made if pass_ not in call.passes]
    # the prompt's, and that of the drafter that has a cache of its own
    assert [one.owner for one in prefills] == ["target", "small"][: 1 + ("small" in drafts)]
    assert all(one.tokens >= len(PROMPT) - 1 for one in prefills)
    own = [one for one in call.passes if (one.owner, one.precision) == ("target", "bf16")]
    assert len(own) == call.output.num_target_steps
    # every pass commits the drafts that stood and one token more
    drafted = call.output.levels[0].num_draft_tokens if drafts else 0
    assert sum(one.tokens for one in own) == len(own) + drafted
    known = {(kind.owner, kind.precision, kind.draft) for level in one.steps for kind in level}
    assert {(one.owner, one.precision, one.draft) for one in call.passes} == known
    spent = sum(one.seconds for one in call.passes)
    assert 0 < call.seconds_beside == call.output.decode_seconds - spent


def test_values_between_measured_ones_lie_on_lines() -> None:
    points = {8: 4.0, 1: 1.0, 2: 1.0}
    assert [cost.between(points, at) for at in (1, 2, 5, 8)] == [1.0, 1.0, 2.5, 4.0]
    assert cost.between(points, 10) == pytest.approx(5.0)
    assert cost.between({4: 3.0}, 9) == 3.0


def made_call(seconds: float, passes: Sequence[tuple[int, bool]], **output: Any) -> Call:
    """So many seconds of decoding, with passes of so many tokens in 0.1 s each."""
    noted_passes = [
        Made("target", "mxfp4a8" if draft else "bf16", draft, tokens, "decode", 0.1)
        for tokens, draft in passes
    ]
    out = peer_output([[0] * 11], "bf16", 0.0, seconds)
    out.levels, out.num_target_steps = output.get("levels", []), sum(not draft for _, draft in passes)
    return Call(out, tuple(noted_passes))


def test_a_ladder_is_explained_by_its_passes_and_its_acceptance(model: Transformer) -> None:
    one = Ours(Contender("bf16", ("mxfp4",)), model, None, (4,))
    kinds = kinds_of([one], 1)
    assert {kind.width for kind in kinds if kind.precision == "bf16"} == set(range(1, 10))
    assert [kind for kind in kinds if kind.draft] == [Pass("target", "mxfp4a8", 1, draft=True)]
    seconds = {kind: 0.03 if kind.draft else 0.1 + (kind.width - 1) / 400 for kind in kinds}
    costs = Costs({kind: Spread(s, s, s) for kind, s in seconds.items()})
    # ten tokens in ten steps, or in two rounds of four drafts that all stand
    plain = made_call(1.2, [(1, False)] * 10)
    round_ = [*[(1, True)] * 4, (5, False)]
    ladder = made_call(1.1, round_ * 2, levels=[stats([4] * 2, [4] * 2)])
    found = costs.explain(one.steps, [ladder] * 3, [plain] * 3)
    assert (found["c"], found["v"], found["alpha"]) == ([0.3], [pytest.approx(1.1)], [1.0])
    # what passes take alone, and a fifth of a second or a tenth beside them
    predicted = (10 * 0.1 + 0.2) / (8 * 0.03 + 2 * 0.11 + 0.1)
    assert found["predicted_speedup"] == pytest.approx(predicted)
    assert found["measured_over_predicted"] == pytest.approx(1.2 / 1.1 / predicted)
    assert found["formula_speedup"] == pytest.approx(5 / 2.3)
    assert [one["k"] for one in found["by_k"]] == list(range(1, 9))
    assert found["by_k"][3]["expected_speedup"] == pytest.approx(5 / 2.3)
    assert found["by_k"][0]["expected_speedup"] == pytest.approx(2 / (0.3 + 1.025))
    loop = costs.in_loop([ladder])
    assert loop["passes_over_alone"] == pytest.approx(1.0 / 0.46)
    assert loop["beside_seconds"] == pytest.approx(0.05)


def test_rows_that_end_early_leave_smaller_passes(model: Transformer) -> None:
    one = Ours(Contender("bf16", ("mxfp4",)), model, None, (2,))
    kinds = kinds_of([one], 16)
    rows = {kind.rows for kind in kinds if kind.draft}
    assert rows == {None, 1, 2, 4, 8}
    # the widest verifications of many rows are made by nobody
    assert max(kind.width for kind in kinds) == 3
    seconds = {kind: float(kind.width * (kind.rows or 16)) for kind in kinds}
    costs = Costs({kind: Spread(s, s, s) for kind, s in seconds.items()}, 16)
    for tokens in (1, 3, 16, 21, 48):
        assert costs.alone(Made("target", "bf16", False, tokens, "decode", 1.0)) == pytest.approx(tokens)
    assert costs.alone(Made("target", "mxfp4a8", True, 11, "decode", 1.0)) == pytest.approx(11)
    ladder = made_call(1.0, [(1, False)], levels=[stats([2], [1])])
    found = costs.explain(one.steps, [ladder], [made_call(1.0, [(1, False)])])
    assert [row["k"] for row in found["by_k"]] == [1, 2]


def test_the_formula_is_not_for_tables_and_deeper_ladders(model: Transformer) -> None:
    for drafts, counts in ((("ngram",), (3,)), (("mxfp4", "small"), (4, 3))):
        one = Ours(Contender("bf16", drafts), model, model, counts)
        costs = Costs({kind: Spread(1.0, 1.0, 1.0) for kind in kinds_of([one], 1)})
        levels = [stats([3] * 4, [3] * 4)] + [stats([2] * 4, [2] * 4)] * (len(drafts) - 1)
        ladder = made_call(5.0, [(1, False)] * 4, levels=levels)
        found = costs.explain(one.steps, [ladder], [made_call(20.0, [(1, False)] * 16)])
        assert (found["formula_speedup"], found["by_k"]) == (None, [])
        assert found["predicted_speedup"] > 1
        assert len(found["c"]) == len(found["v"]) == len(found["alpha"]) == len(drafts)


def test_levels_are_timed_as_they_run(model: Transformer) -> None:
    one = Ours(Contender("bf16", ("mxfp4", "small")), model, model, (4, 2))
    assert one.name == "bf16 <- mxfp4 <- small, K=4,2"
    target, middle, bottom = one.steps
    assert target == [Pass("target", "bf16", width) for width in range(1, 6)]
    assert middle == [Pass("target", "mxfp4a8", width, draft=True) for width in range(1, 4)]
    # two where all that was drafted stood: it has not read the last of it
    assert bottom == [Pass("small", "bf16", width, draft=True) for width in (1, 2)]


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
