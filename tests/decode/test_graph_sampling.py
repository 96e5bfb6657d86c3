"""A deep ladder in rounds of fixed shapes hands up fewer drafts where few stood: the distribution stays."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from torch import Tensor

from qspec_decode.fixed import FixedLevel
from qspec_decode.speculate import speculate
from tests.decode import joint

CASES = {case.name: case for case in joint.CASES}
THREE = replace(CASES["bf16 <- mxfp4 <- w4a8, K=3,2"], num_sequences=20_000)
FOUR = replace(CASES["bf16 <- mxfp4 <- w4a8 <- w4a4, K=4,2,1"], num_sequences=10_000)
LOOKED_UP = replace(CASES["bf16 <- mxfp4 <- ngram, K=3,2"], num_sequences=5_000)


@pytest.fixture(autouse=True)
def _fixed_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "speculate", partial(speculate, enforce_eager=False))


@pytest.mark.parametrize("case", [THREE, FOUR, LOOKED_UP], ids=lambda case: case.name)
def test_sequences_follow_the_target(case: joint.Case) -> None:
    found = joint.run(case)
    for one in found:
        print(f"\n  {case.name:45s} {one}", end="")
    assert all(one.passes for one in found)


@pytest.mark.parametrize(
    "name", ["inner level resamples from its own p", "inner level declares its draft's q"]
)
def test_a_fault_in_the_middle_level_is_caught(name: str) -> None:
    mutant, _ = joint.MUTANTS[name]
    with mutant():
        found = joint.worst(joint.run(THREE))
    print(f"\n  {name:45s} {found}", end="")
    assert found.caught


def test_leaving_out_a_token_because_of_what_it_is_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level that hands up only drafts that stood, and not what replaced a refused one."""
    fixed_round = FixedLevel.fixed_round

    def mutant(self: Any, lengths: Tensor, limits: Tensor, most: int) -> Any:
        emission, lost = fixed_round(self, lengths, limits, most)
        if self._index == 1 and most > 1:
            emission = replace(emission, num_tokens=emission.num_accepted_tokens * (limits > 0))
        return emission, lost

    monkeypatch.setattr(FixedLevel, "fixed_round", mutant)
    found = joint.worst(joint.run(THREE))
    print(f"\n  {found}", end="")
    assert found.caught
