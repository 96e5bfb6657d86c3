"""B2 on tables: greedy speculation equals plain decoding, wherever rows end and drafts run out."""

import random
from typing import Any

import pytest
import torch

from qspec_decode.generate import generate
from qspec_decode.ladder import DraftModel
from qspec_decode.speculate import speculate
from qspec_decode.speculative_config import SpeculativeConfig
from tests.decode.recorders import CallLog, Recorder
from tests.decode.tabular import TabularModel, random_tables

DRAFTS = ("mxfp4", "w4a8", "w4a4", "small", "tiny")


def random_ladder(rng: random.Random, others: dict[str, DraftModel]) -> list[Any]:
    """One to three drafts, so two to four levels, in any order, perhaps with an n-gram at the bottom."""
    depth = rng.randint(1, 3)
    names = rng.sample(DRAFTS, depth)
    if rng.random() < 0.3:
        names[-1] = "ngram"
    return [others.get(name, name) for name in names]


@pytest.mark.parametrize("block", range(10))
def test_speculation_equals_plain_decoding_on_random_runs(block: int) -> None:
    """60 runs each: K 1..8 per level, 1..8 ragged rows, 2..4 levels, ends of every kind, of drafts too."""
    seen = {"stop": 0, "length": 0}
    for run in range(60):
        rng = random.Random(1000 * block + run)
        vocab = rng.choice([3, 5, 17])
        positions = rng.choice([20, 30, 500])
        tables = random_tables(vocab, rng.randrange(10**6), {"mxfp4a8": 0.4, "w4a8": 0.8, "w4a4": 1.5})
        model = TabularModel(tables, positions, (0,) if rng.random() < 0.4 else ())
        others = {
            name: DraftModel(
                TabularModel({"bf16": tables["bf16"] + noise * torch.randn_like(tables["bf16"])}, most),
                name=name,
            )
            for name, noise, most in (("small", 0.6, rng.choice([9, 25, 500])), ("tiny", 1.2, 500))
        }
        prompts = [
            [rng.randrange(vocab) for _ in range(rng.randint(1, 14))] for _ in range(rng.randint(1, 8))
        ]
        draft = random_ladder(rng, others)
        n = rng.randint(1, 40)
        plain = generate(model, prompts, max_new_tokens=n)
        config = SpeculativeConfig([rng.randint(1, 8) for _ in draft], rng.choice([0.0, 0.2, 0.5, 0.9]))
        out = speculate(model, prompts, draft=draft, config=config, max_new_tokens=n)
        assert out.token_ids == plain.token_ids
        assert out.finish_reasons == plain.finish_reasons
        for row, prompt in enumerate(prompts):
            assert out.sequences[row].tolist() == prompt + plain.token_ids[row]
        for reason in out.finish_reasons:
            seen[reason] += 1
    assert min(seen.values()) > 20


def counting_model(vocab: int, wrong_at: int | None = None) -> TabularModel:
    """Says last + 1; its draft too, but for one id after which it is wrong."""
    right = torch.eye(vocab).roll(1, 1).expand(vocab, -1, -1).contiguous() * 5
    draft = right.clone()
    if wrong_at is not None:
        draft[:, wrong_at] = draft[:, wrong_at].roll(1, -1)
    return TabularModel({"bf16": right, "mxfp4a8": draft})


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("wrong_at", [None, 2, 4])
def test_a_row_ends_at_its_eos_wherever_it_falls_in_a_block(k: int, wrong_at: int | None) -> None:
    """EOS at each position of the first blocks, every max_new_tokens from 1 to K+2: tokens, reason."""
    model = counting_model(16, wrong_at)
    for eos in range(1, 2 * k + 4):
        for n in range(1, k + 3):
            watch = Recorder()
            options: dict[str, Any] = {"max_new_tokens": n, "eos_token_id": eos}
            out = speculate(model, [[0]], draft="mxfp4", num_speculative_tokens=k, streamer=watch, **options)
            plain = generate(model, [[0]], **options)
            assert out.token_ids == plain.token_ids == [list(range(1, min(eos, n) + 1))]
            # a stop beats the limit that is reached with the same token
            assert out.finish_reasons == plain.finish_reasons == ["stop" if eos <= n else "length"]
            assert out.num_tokens == min(eos, n)
            assert watch.by_row(1) == out.token_ids


def test_rows_end_one_by_one_and_cost_nothing_afterwards() -> None:
    model = CallLog(counting_model(40).tables)
    watch = Recorder()
    # row r reaches the end-of-text id after 39 - start tokens
    starts = [30, 10, 36, 20]
    out = speculate(
        model,
        [[start] for start in starts],
        draft="mxfp4",
        num_speculative_tokens=3,
        max_new_tokens=100,
        eos_token_id=39,
        streamer=watch,
    )
    assert out.token_ids == [list(range(start + 1, 40)) for start in starts]
    assert out.finish_reasons == ["stop"] * 4
    # a round belongs to the rows that got tokens out of it, and so do the forward calls before it
    calls = iter(model.log)
    for rows, tokens, _, _ in watch.puts:
        while True:
            precision, fed, _ = next(calls)
            assert set(fed) == set(rows)
            if precision == "bf16":
                break
        for row, ids in zip(rows, tokens, strict=True):
            assert ids
            assert 39 not in ids[:-1]
            assert out.token_ids[row][-1] == 39
    assert next(calls, None) is None
    assert [len(rows) for rows, *_ in watch.puts] == sorted((len(r) for r, *_ in watch.puts), reverse=True)
    assert len(watch.puts[-1][0]) == 1


def test_several_ids_may_end_a_row_and_the_models_own_are_the_default() -> None:
    model = TabularModel(counting_model(12).tables, eos_token_ids=(7, 5))
    options: dict[str, Any] = {"draft": "mxfp4", "max_new_tokens": 9}
    assert speculate(model, [[0]], **options).token_ids == [[1, 2, 3, 4, 5]]
    assert speculate(model, [[0]], eos_token_id=(3, 8), **options).token_ids == [[1, 2, 3]]
    assert speculate(model, [[0]], eos_token_id=(), **options).token_ids == [[*range(1, 10)]]


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("draft", ["mxfp4", "small", "ngram"])
def test_drafts_are_clipped_where_the_positions_end(k: int, draft: str) -> None:
    """Prompts of every length up to the last that leaves a position; no call beyond any model's positions."""
    positions, short = 12, 7
    tables = random_tables(5, 2, {"mxfp4a8": 0.5})
    model = CallLog(tables, positions)
    small = CallLog({"bf16": tables["mxfp4a8"]}, short)
    prompts = [[i % 5 for i in range(length)] for length in range(1, positions)]
    levels: Any = [DraftModel(small), "mxfp4"] if draft == "small" else draft
    out = speculate(model, prompts, draft=levels, num_speculative_tokens=k, max_new_tokens=50)
    plain = generate(TabularModel(tables, positions), prompts, max_new_tokens=50)
    assert out.token_ids == plain.token_ids
    assert [len(row) for row in out.sequences] == [positions] * len(prompts)
    assert set(out.finish_reasons) == {"length"}
    assert max(p for _, _, at in model.log for p in at) < positions
    if draft == "small":
        assert max(p for _, _, at in small.log for p in at) == short - 1


def test_a_draft_model_drafts_from_a_cache_of_its_own() -> None:
    """Equal tables: everything is accepted, also after rounds in which the draft fell a token behind."""
    tables = random_tables(30, 6, {})
    small = CallLog(tables)
    out = speculate(
        TabularModel(tables),
        [[1, 2, 3], [4]],
        draft=DraftModel(small, name="sibling"),
        num_speculative_tokens=3,
        max_new_tokens=33,
        eos_token_id=(),
    )
    assert [(level.name, level.acceptance_rate) for level in out.levels] == [("sibling", 1.0)]
    # prompts once, then per round the token that the bonus left out, the bonus itself, and two more
    fed = [len(rows) for _, rows, _ in small.log]
    assert fed == [4] + [2, 2, 2] + [4, 2, 2] * 7


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_streamer_gets_exactly_the_committed_tokens(temperature: float) -> None:
    model = TabularModel(random_tables(7, 3, {"mxfp4a8": 0.8, "w4a8": 1.2}), eos_token_ids=(0,))
    watch = Recorder()
    prompts = [[1 + row % 6] * (1 + row % 5) for row in range(30)]
    out = speculate(
        model,
        prompts,
        draft=["mxfp4", "w4a8"],
        num_speculative_tokens=3,
        max_new_tokens=20,
        temperature=temperature,
        seed=3,
        streamer=watch,
    )
    assert watch.by_row(30) == out.token_ids
    assert watch.num_ends == 1
    for rows, tokens, drafted, accepted in watch.puts:
        assert len(rows) == len(tokens) == len(drafted) == len(accepted)
        for row, ids, d, a in zip(rows, tokens, drafted, accepted, strict=True):
            assert a <= d <= 3
            # cut at an end-of-text id, else the drafts that stood and the target's own token
            assert len(ids) == a + 1 or (ids[-1] == 0 and out.finish_reasons[row] == "stop")
    assert len(watch.puts) == 1 + out.num_target_steps


def test_plain_decoding_streams_one_token_a_row_and_step() -> None:
    watch = Recorder()
    out = generate(
        TabularModel(random_tables(7, 3, {}), eos_token_ids=(0,)),
        [[1], [2, 3]],
        max_new_tokens=15,
        streamer=watch,
    )
    assert watch.by_row(2) == out.token_ids
    assert watch.num_ends == 1
    assert all(len(ids) == 1 for _, tokens, _, _ in watch.puts for ids in tokens)
    assert all(not any(drafted) and not any(accepted) for _, _, drafted, accepted in watch.puts)


def test_ties_go_to_the_lowest_id() -> None:
    flat = torch.zeros(4, 4, 4)
    flat[..., 2:] = 1.0
    model = TabularModel({"bf16": flat, "mxfp4a8": flat})
    assert generate(model, [[0]], max_new_tokens=5).token_ids == [[2] * 5]
    assert speculate(model, [[0]], draft="mxfp4", max_new_tokens=5).token_ids == [[2] * 5]


def test_the_result_says_what_it_is_lossless_against() -> None:
    model = TabularModel(random_tables(4, 0, {"w4a16": 0.1, "w4a8": 0.2}))
    out = speculate(model, [[1]], target="w4a16", draft="w4a8", max_new_tokens=4)
    assert (out.lossless, out.reference) == (True, "w4a16")
    assert out.token_ids == generate(model, [[1]], target="w4a16", max_new_tokens=4).token_ids


def test_auto_drafts_with_w4a8_under_four_bits_and_with_mxfp4_under_sixteen() -> None:
    model = TabularModel(random_tables(4, 0, {"mxfp4a8": 0.1, "w4a16": 0.1, "w4a8": 0.2}))
    for target, draft, k in (("bf16", "mxfp4a8", 4), ("w4a16", "w4a8", 3)):
        watch = Recorder()
        sampled = {"temperature": 1.0, "seed": 0}
        out = speculate(model, [[1]], target=target, max_new_tokens=20, streamer=watch, **sampled)
        assert [level.name for level in out.levels] == [draft]
        assert max(drafted[0] for *_, drafted, _ in watch.puts) == k
