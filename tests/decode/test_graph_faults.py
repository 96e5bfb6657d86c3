"""Faults put into rounds of fixed shapes, one by one: each must be seen."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from qspec_decode import fixed
from qspec_decode.fixed import FixedLevel
from qspec_decode.graphs.round import Round
from tests.decode.graph_cases import Case, same, tokens_of_rounds_too_many


def _finished_rows_commit(patch: pytest.MonkeyPatch) -> None:
    call = Round.__call__

    def mutant(self: Round) -> Tensor:
        # rows that no prompt came for stay where they are
        self.finished.logical_and_(self.lengths == 1)
        return call(self)

    patch.setattr(Round, "__call__", mutant)


def _limits_dropped(patch: pytest.MonkeyPatch) -> None:
    fixed_round = FixedLevel.fixed_round

    def mutant(self: FixedLevel, lengths: Tensor, limits: Tensor, most: int) -> Any:
        return fixed_round(self, lengths, limits.where(limits == 0, most), most)

    patch.setattr(FixedLevel, "fixed_round", mutant)


def _end_of_text_overlooked(patch: pytest.MonkeyPatch) -> None:
    make = Round.__init__

    def mutant(self: Round, top: FixedLevel, eos: Tensor) -> None:
        make(self, top, eos[:0])

    patch.setattr(Round, "__init__", mutant)


def _stale_cache(patch: pytest.MonkeyPatch) -> None:
    """Refused drafts stay in the caches."""
    patch.setattr(FixedLevel, "fixed_keep", lambda self, lengths: None)


def _last_draft_never_fed(patch: pytest.MonkeyPatch) -> None:
    connect = FixedLevel.connect

    def mutant(self: FixedLevel) -> list[FixedLevel]:
        levels = connect(self)
        for level in levels:
            level.lag = 0
        return levels

    patch.setattr(FixedLevel, "connect", mutant)


def _noise_of_the_round_before(patch: pytest.MonkeyPatch) -> None:
    exact = fixed.uniform_of
    patch.setattr(fixed, "uniform_of", lambda state, positions: exact(state, positions - 1))


def _verified_one_too_early(patch: pytest.MonkeyPatch) -> None:
    accept = FixedLevel._accept

    def mutant(self: Any, lengths: Tensor, proposal: Any, logits: Tensor) -> Any:
        return accept(self, lengths, proposal, logits.roll(1, 0))

    patch.setattr(FixedLevel, "_accept", mutant)


@pytest.mark.parametrize("mutant", [_finished_rows_commit, _end_of_text_overlooked])
def test_rows_that_go_on_behind_their_end_are_seen(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    assert tokens_of_rounds_too_many() > 0


@pytest.mark.parametrize(
    ("mutant", "names", "temperature"),
    [
        (_limits_dropped, ["mxfp4"], 0.0),
        (_stale_cache, ["mxfp4", "small"], 0.0),
        (_last_draft_never_fed, ["small"], 0.0),
        (_noise_of_the_round_before, ["mxfp4"], 0.9),
        (_verified_one_too_early, ["mxfp4"], 0.0),
    ],
)
def test_a_fault_in_a_round_is_seen(
    mutant: Callable[[pytest.MonkeyPatch], None],
    names: list[str],
    temperature: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(7)
    seen = False
    for _ in range(12):
        case = Case(rng, names, temperature)
        sound, _ = case.run(enforce_eager=False)
        case.model.graphs.clear()
        with monkeypatch.context() as patch:
            mutant(patch)
            try:
                seen = seen or not same(case.run(enforce_eager=False)[0], sound)
            # a token may also be fed where its predecessor is missing, or stand beyond the buffer
            except (AssertionError, IndexError, RuntimeError):
                seen = True
        if seen:
            break
    assert seen
