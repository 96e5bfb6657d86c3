"""Statistics count what happened, and agree with what the distributions say must happen."""

import json

import pytest
import torch

from qspec_decode.accept import standard
from qspec_decode.sampling import SamplingParams, probabilities
from qspec_decode.speculate import speculate
from qspec_decode.stats import SpecDecodingStats
from tests.decode.recorders import Recorder
from tests.decode.tabular import TabularModel, random_tables


def test_counts_of_hand_made_rounds() -> None:
    stats = SpecDecodingStats("mxfp4a8")
    stats.record([3, 3, 2, 0], [3, 1, 0, 0])
    stats.record([1, 4], [1, 2])
    assert stats.num_drafts == 5
    assert stats.num_draft_tokens == 13
    assert stats.num_accepted_tokens == 7
    assert stats.num_refused == 3
    assert stats.num_accepted_tokens_per_pos == [4, 2, 1, 0]
    assert stats.num_draft_tokens_per_pos == [5, 4, 3, 1]
    assert stats.acceptance_rate == 7 / 13
    assert stats.acceptance_rate_per_pos == [4 / 5, 2 / 4, 1 / 3, 0]
    assert stats.mean_acceptance_length == 1 + 7 / 5
    # seven stood, three fell, three behind them were never decided on
    assert stats.per_token_acceptance == 7 / 10


def test_nothing_drafted_divides_by_nothing() -> None:
    stats = SpecDecodingStats("ngram")
    stats.record([0, 0], [0, 0])
    assert stats.num_drafts == 0
    assert (stats.acceptance_rate, stats.per_token_acceptance, stats.mean_acceptance_length) == (
        0.0,
        0.0,
        1.0,
    )
    assert stats.acceptance_rate_per_pos == []


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_statistics_equal_what_a_streamer_saw(temperature: float) -> None:
    watch = Recorder()
    out = speculate(
        TabularModel(random_tables(9, 2, {"mxfp4a8": 0.7, "w4a8": 1.0})),
        [[1 + row % 8] * (1 + row % 3) for row in range(20)],
        draft=["mxfp4", "w4a8"],
        num_speculative_tokens=[4, 2],
        max_new_tokens=33,
        temperature=temperature,
        seed=1,
        streamer=watch,
    )
    top, inner = out.levels
    drafted = [d for _, _, counts, _ in watch.puts for d in counts]
    accepted = [a for _, _, _, counts in watch.puts for a in counts]
    assert (top.name, inner.name) == ("mxfp4a8", "w4a8")
    assert top.num_draft_tokens == sum(drafted)
    assert top.num_accepted_tokens == sum(accepted)
    assert top.num_drafts == sum(d > 0 for d in drafted)
    assert top.num_refused == sum(a < d for a, d in zip(accepted, drafted, strict=True))
    for position in range(4):
        assert top.num_accepted_tokens_per_pos[position] == sum(a > position for a in accepted)
        assert top.num_draft_tokens_per_pos[position] == sum(d > position for d in drafted)
    # every round of every row commits what it accepts and one token more
    assert out.num_tokens == sum(accepted) + len(accepted)
    # the inner level made every token that it handed up, rounds of a single token included
    assert inner.num_accepted_tokens < top.num_draft_tokens
    assert inner.num_draft_tokens >= inner.num_accepted_tokens > 0


def test_acceptance_is_the_overlap_of_the_distributions_and_lengths_follow_it() -> None:
    """Without context alpha = sum of min(p, q), position i stands with a^(i+1), E = (1-a^(K+1))/(1-a)."""
    vocab, k, rows, rounds = 12, 4, 3000, 10
    generator = torch.Generator().manual_seed(3)
    p, q = torch.randn(2, vocab, generator=generator) * 1.2
    model = TabularModel({"bf16": p.expand(vocab, vocab, -1), "mxfp4a8": q.expand(vocab, vocab, -1)})
    out = speculate(
        model,
        [[0]] * rows,
        draft="mxfp4",
        num_speculative_tokens=k,
        max_new_tokens=1 + rounds * (k + 1),
        temperature=0.8,
        seed=4,
    )
    alpha = float(torch.minimum(*probabilities(torch.stack([p, q]), SamplingParams(temperature=0.8))).sum())
    assert 0.3 < alpha < 0.9
    (level,) = out.levels
    decided = level.num_accepted_tokens + level.num_refused
    assert level.per_token_acceptance == pytest.approx(alpha, abs=6 * (alpha * (1 - alpha) / decided) ** 0.5)
    for position, rate in enumerate(level.acceptance_rate_per_pos):
        expected = alpha ** (position + 1)
        spread = (expected * (1 - expected) / level.num_draft_tokens_per_pos[position]) ** 0.5
        assert rate == pytest.approx(expected, abs=6 * spread)
    expected = (1 - alpha ** (k + 1)) / (1 - alpha)
    # blocks that the limit clips are a little shorter
    assert expected - 0.15 < level.mean_acceptance_length < expected + 0.02


def test_a_bad_rule_shows_in_the_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lossless rule that accepts too rarely is found by no chi-square: only by its rate."""
    accept = standard.accept

    def shy(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids, num, q, p, coins, draws = args
        # decides on at most one draft and draws the next token from the target: right, but slow
        return accept(ids, num.clamp(max=1), q, p, coins, draws)

    monkeypatch.setattr(standard, "accept", shy)
    with pytest.raises(AssertionError):
        test_acceptance_is_the_overlap_of_the_distributions_and_lengths_follow_it()


def test_a_stop_is_counted_with_the_tokens_that_it_cuts() -> None:
    right = torch.eye(16).roll(1, 1).expand(16, -1, -1) * 5
    model = TabularModel({"bf16": right, "mxfp4a8": right})
    out = speculate(model, [[0]], draft="mxfp4", num_speculative_tokens=4, max_new_tokens=100, eos_token_id=3)
    assert out.token_ids == [[1, 2, 3]]
    assert (out.levels[0].num_draft_tokens, out.levels[0].num_accepted_tokens) == (4, 4)


def test_times_and_speed_are_of_the_decoding_alone() -> None:
    model = TabularModel(random_tables(9, 2, {"mxfp4a8": 0.7}))
    out = speculate(model, [[1], [2]], draft="mxfp4", max_new_tokens=30)
    assert out.prefill_seconds > 0
    level = out.levels[0]
    assert level.draft_time > 0
    assert level.verify_time > 0
    assert level.draft_time + level.verify_time < out.decode_seconds
    assert out.tokens_per_second == pytest.approx((60 - 2) / out.decode_seconds)
    # rounds of one launch have no parts that could be timed
    (graphs,) = speculate(model, [[1], [2]], draft="mxfp4", max_new_tokens=30, enforce_eager=False).levels
    assert graphs.num_draft_tokens > 0
    assert graphs.draft_time == graphs.verify_time == 0


def test_one_token_has_no_decoding_speed() -> None:
    model = TabularModel(random_tables(9, 2, {"mxfp4a8": 0.7}))
    out = speculate(model, [[1]], draft="mxfp4", max_new_tokens=1)
    assert (out.num_tokens, out.tokens_per_second, out.num_target_steps) == (1, 0.0, 0)
    assert out.levels[0].num_drafts == 0


def test_the_result_is_json() -> None:
    model = TabularModel(random_tables(9, 2, {"mxfp4a8": 0.7}))
    out = speculate(
        model, [[1], [2, 3]], draft=["mxfp4", "ngram"], max_new_tokens=12, temperature=0.5, seed=3
    )
    found = json.loads(json.dumps(out.to_dict()))
    assert found["token_ids"] == out.token_ids
    assert found["seeds"] == [[3, 0], [3, 1]]
    assert found["num_tokens"] == 24
    assert [level["name"] for level in found["levels"]] == ["mxfp4a8", "ngram"]
    for level, stats in zip(found["levels"], out.levels, strict=True):
        assert level["acceptance_rate"] == stats.acceptance_rate
        assert level["mean_acceptance_length"] == stats.mean_acceptance_length
        assert level["num_accepted_tokens_per_pos"] == stats.num_accepted_tokens_per_pos
