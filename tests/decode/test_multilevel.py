"""B6: ladders of three and four levels are as lossless as one draft, and every level's cache is right."""

import random
from typing import Any

import pytest
import torch

from qspec_decode import ladder
from qspec_decode.ladder import DraftModel
from qspec_decode.levels import ModelLevel, SharedCache
from qspec_decode.speculate import speculate
from tests.decode import joint, mutants
from tests.decode.recorders import CallLog, Recorder
from tests.decode.tabular import TabularModel, random_tables
from tests.decode.test_speculate_sampled import check

DEEP = [case for case in joint.CASES if len(case.draft) > 1]
DEEP_MUTANTS = [name for name, (_, case) in joint.MUTANTS.items() if len(case.draft) > 1]


@pytest.mark.parametrize("case", DEEP, ids=lambda case: case.name)
@pytest.mark.usefixtures("untyped")
def test_sequences_of_a_deep_ladder_follow_the_target(case: joint.Case) -> None:
    check(case.name, joint.run(case), 0.02)


@pytest.mark.parametrize("name", DEEP_MUTANTS)
@pytest.mark.usefixtures("untyped")
def test_a_fault_in_the_middle_level_is_caught(name: str) -> None:
    mutant, case = joint.MUTANTS[name]
    with mutant():
        found = joint.worst(joint.run(case))
    print(f"\n  {name:45s} {found}", end="")
    assert found.caught


class CacheWatch:
    """A streamer that looks into every cache after each round, and spoils what lies beyond the valid part."""

    def __init__(self, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, spoil: bool = True):
        self.rows = [list(prompt) for prompt in prompts]
        self.spoil, self.num_checked = spoil, 0
        self.caches: list[SharedCache] = []
        build = ladder.build

        def remember(*args: Any) -> ModelLevel:
            top = build(*args)
            level: Any = top
            while isinstance(level, ModelLevel):
                self.caches.append(level._cache)
                level = level._inner[0] if level._inner else None
            return top

        monkeypatch.setattr(ladder, "build", remember)

    def put(
        self, rows: list[int], tokens: list[list[int]], num_drafted: list[int], num_accepted: list[int]
    ) -> None:
        for row, ids in zip(rows, tokens, strict=True):
            self.rows[row] += ids
        for row in rows:
            committed = torch.tensor(self.rows[row])
            # the target's own part holds all but the last token, which is not in the cache yet
            assert self.caches[0].valid[row] == len(committed) - 1
            for shared in self.caches:
                valid = shared.valid[row]
                assert valid < len(committed)
                assert torch.equal(shared.cache.ids[row, :valid], committed[:valid])
                self.num_checked += valid
                if self.spoil:
                    shared.cache.ids[row, valid:] = -1

    def end(self) -> None:
        pass


def ladders(vocab: int, seed: int) -> tuple[TabularModel, dict[str, Any]]:
    model = TabularModel(random_tables(vocab, seed, {"mxfp4a8": 0.7, "w4a8": 1.0, "w4a4": 1.5}))
    small = DraftModel(TabularModel({"bf16": random_tables(vocab, seed, {"s": 1.0})["s"]}))
    tiny = DraftModel(TabularModel({"bf16": random_tables(vocab, seed, {"s": 1.5})["s"]}), name="tiny")
    return model, {
        "one cache": ["mxfp4", "w4a8", "w4a4"],
        "small below": ["mxfp4", small],
        "small between": [small, "w4a4"],
        "three caches": ["mxfp4", small, tiny, "ngram"],
        "both ends": ["mxfp4", small, "w4a4"],
    }


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("name", ladders(5, 0)[1])
def test_every_cache_holds_the_committed_tokens_and_nothing_beyond_them_matters(
    name: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(name)
    prompts = [[rng.randrange(5) for _ in range(rng.randint(1, 9))] for _ in range(8)]
    options: dict[str, Any] = {
        "num_speculative_tokens": 3,
        "max_new_tokens": 40,
        "temperature": temperature,
        "seed": 4,
        "eos_token_id": (),
    }
    model, named = ladders(5, 1)
    clean = speculate(model, prompts, draft=named[name], **options)
    watch = CacheWatch(prompts, monkeypatch)
    model, named = ladders(5, 1)
    out = speculate(model, prompts, draft=named[name], streamer=watch, **options)
    assert out.token_ids == clean.token_ids
    assert watch.rows == [row.tolist() for row in out.sequences]
    assert watch.num_checked > 5_000


def test_a_missing_rollback_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[1, 2, 3]] * 4
    model, named = ladders(5, 1)
    watch = CacheWatch(prompts, monkeypatch, spoil=False)
    with mutants.no_rollback(), pytest.raises(AssertionError):
        speculate(
            model,
            prompts,
            draft=named["small below"],
            streamer=watch,
            max_new_tokens=40,
            temperature=0.9,
            seed=4,
        )


def test_a_verify_is_one_call_for_all_drafts_of_all_rows() -> None:
    """Two rounds of K=4 that are fully accepted: four calls of one token a row, one of K+1 tokens a row."""
    tables = random_tables(11, 5, {"mxfp4a8": 0.0})
    model = CallLog(tables)
    speculate(model, [[1], [2, 3], [4, 5, 6]], draft="mxfp4", num_speculative_tokens=4, max_new_tokens=11)
    sizes = [(precision, len(rows)) for precision, rows, _ in model.log]
    assert sizes == [("bf16", 6)] + ([("mxfp4a8", 3)] * 4 + [("bf16", 15)]) * 2


def test_one_verify_per_round_at_every_level_whatever_is_accepted() -> None:
    model, named = ladders(9, 3)
    out = speculate(
        model,
        [[1, 2], [3], [4, 5, 6]],
        draft=named["one cache"][:2],
        num_speculative_tokens=[4, 2],
        max_new_tokens=50,
        temperature=1.0,
        seed=8,
    )
    assert [p for p, _ in model.calls].count("bf16") == 1 + out.num_target_steps
    assert out.num_target_steps < 50 - 1


def test_a_verify_feeds_the_last_committed_token_and_the_drafts_behind_it() -> None:
    model, watch = CallLog(random_tables(9, 3, {"mxfp4a8": 1.0})), Recorder()
    speculate(model, [[1, 2, 3]], draft="mxfp4", num_speculative_tokens=3, max_new_tokens=30, streamer=watch)
    verifies = [positions for precision, _, positions in model.log if precision == "bf16"]
    assert verifies[0] == [0, 1, 2]
    length = 3 + 1
    for positions, (_, tokens, drafted, _) in zip(verifies[1:], watch.puts[1:], strict=True):
        assert positions == list(range(length - 1, length + drafted[0]))
        length += len(tokens[0])
