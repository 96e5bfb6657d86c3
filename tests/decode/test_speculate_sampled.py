"""B1, B4, B5: sampled speculation has the target's distribution, and every known fault is seen.

`python -m tests.decode.chi_square` prints the numbers of this file and of test_multilevel.py.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch

from qspec_decode import levels
from qspec_decode.accept import standard
from qspec_decode.generate import generate
from qspec_decode.ladder import DraftModel
from qspec_decode.speculate import speculate
from reference import sampling
from tests.decode import joint, mutants, single_position
from tests.decode.chi_square import Fit, cells, fit
from tests.decode.tabular import TabularModel, random_tables

TWO_LEVELS = [case for case in joint.CASES if len(case.draft) == 1]
TWO_LEVEL_MUTANTS = [name for name, (_, case) in joint.MUTANTS.items() if len(case.draft) == 1]


def check(name: str, fits: list[Fit], total_variation: float) -> None:
    for found in fits:
        print(f"\n  {name:45s} {found}", end="")
    assert all(found.passes for found in fits)
    # the share that chance alone moves grows as the number of trials falls
    assert all(
        found.total_variation < total_variation * max(1.0, math.sqrt(100_000 / found.num_trials))
        for found in fits
    )


@pytest.mark.parametrize("case", single_position.CASES, ids=lambda case: case.name)
def test_tokens_at_every_position_of_a_round_follow_the_target(case: single_position.Case) -> None:
    check(case.name, single_position.run(case), 0.01)


@pytest.mark.parametrize("case", single_position.LARGE_CASES, ids=lambda case: case.name)
def test_tokens_follow_the_target_in_a_large_vocabulary(case: single_position.Case) -> None:
    check(case.name, single_position.run(case), 1.0)


@pytest.mark.parametrize("case", [c for c in single_position.CASES if c.near], ids=lambda case: case.name)
def test_greedy_drafts_leave_the_target_distribution(case: single_position.Case) -> None:
    check(f"greedy, {case.name}", single_position.run(case, single_position.greedy_declared), 0.01)


@pytest.mark.parametrize("name", single_position.MUTANTS)
def test_a_false_declaration_of_the_draft_is_caught(name: str) -> None:
    case = single_position.Case(near=True, temperature=1.0, k=1)
    found = single_position.run(case, single_position.MUTANTS[name])
    print(f"\n  {name:45s} {found[0]}", end="")
    assert found[0].caught


@pytest.mark.parametrize("case", TWO_LEVELS, ids=lambda case: case.name)
@pytest.mark.usefixtures("untyped")
def test_sequences_follow_the_joint_distribution_of_the_target(case: joint.Case) -> None:
    check(case.name, joint.run(case), 0.02)


@pytest.mark.parametrize("name", TWO_LEVEL_MUTANTS)
@pytest.mark.usefixtures("untyped")
def test_a_fault_in_the_loop_is_caught(name: str) -> None:
    mutant, case = joint.MUTANTS[name]
    with mutant():
        found = joint.worst(joint.run(case))
    print(f"\n  {name:45s} {found}", end="")
    assert found.caught


@pytest.mark.usefixtures("untyped")
def test_plain_decoding_follows_the_joint_distribution_too() -> None:
    """The yardstick itself: without it, the loop and the enumeration could be wrong in the same way."""
    case = dataclasses.replace(joint.CASES[0], num_sequences=60_000)
    prompts = [joint.PROMPTS[row % 3] for row in range(case.num_sequences)]
    out = generate(joint.model(), prompts, max_new_tokens=4, seed=5, temperature=1.0)
    found = fit(cells(torch.tensor(out.token_ids)[:, 1:], joint.VOCAB), joint.exact(case))
    assert found.passes


def test_filters_leave_only_what_the_target_allows() -> None:
    model = TabularModel(random_tables(9, 3, {"mxfp4a8": 1.0}))
    for options in ({"top_k": 1}, {"top_k": 3}, {"top_p": 0.5}, {"top_p": 0.9, "top_k": 4}):
        out = speculate(
            model, [[1, 2]] * 200, draft="mxfp4", temperature=1.0, seed=1, max_new_tokens=12, **options
        )
        for row in out.sequences:
            for before, last, token in zip(row[:-2], row[1:-1], row[2:], strict=True):
                p = sampling.probabilities(model.tables["bf16"][before, last], 1.0, **options)
                assert p[token] > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.7])
@pytest.mark.parametrize("k", [1, 3, [4, 2]])
def test_a_draft_equal_to_the_target_is_always_accepted(temperature: float, k: int | list[int]) -> None:
    """B15: exactly 1.0, not nearly."""
    tables = random_tables(50, 9, {})
    draft = ["bf16", DraftModel(TabularModel(tables))] if isinstance(k, list) else "bf16"
    prompts = [[1 + row % 40] * (1 + row % 7) for row in range(64)]
    out = speculate(
        TabularModel(tables),
        prompts,
        draft=draft,
        num_speculative_tokens=k,
        max_new_tokens=41,
        temperature=temperature,
        seed=2,
    )
    for level in out.levels:
        assert level.num_draft_tokens > 1000
        assert level.acceptance_rate == 1.0
        assert level.per_token_acceptance == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_draft_declares_the_very_numbers_that_it_drew_from(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    tables = random_tables(30, 2, {"mxfp4a8": 1.0})
    model = TabularModel({name: table.to(dtype) for name, table in tables.items()})
    declared: list[torch.Tensor] = []
    drawn_from: list[torch.Tensor] = []
    accept, draw = standard.accept, levels.draw

    def spying(ids: Any, num: Any, q: Any, p: Any, coins: Any, draws: Any) -> Any:
        if q is not None:
            declared.append(q[0, : int(num[0])])
        return accept(ids, num, q, p, coins, draws)

    def drawing(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        drawn_from.append(weights)
        return draw(weights, uniforms)

    monkeypatch.setattr(standard, "accept", spying)
    monkeypatch.setattr(levels, "draw", drawing)
    speculate(
        model, [[1, 2]], draft="mxfp4", num_speculative_tokens=3, max_new_tokens=10, temperature=1.0, seed=1
    )
    assert len(declared) > 1
    assert all(q.dtype == dtype for q in declared)
    rows = torch.cat(drawn_from)
    assert all(any(torch.equal(q, row) for row in rows) for q in torch.cat(declared))


def test_a_mutant_changes_nothing_once_it_is_over() -> None:
    case = dataclasses.replace(joint.CASES[0], num_sequences=2_000)
    before = joint.draw(case)
    with mutants.coin_shared():
        assert not torch.equal(joint.draw(case), before)
    assert torch.equal(joint.draw(case), before)
