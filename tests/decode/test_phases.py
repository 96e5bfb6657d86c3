"""Passes over prompts are told from passes that decode: only the former may sum in another order."""

from typing import Any

import pytest
from torch import Tensor

from qspec_decode import generate, speculate
from tests.decode.tabular import TabularModel, random_tables


class Phases(TabularModel):
    """Remembers the precision, number of tokens and phase of each pass."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.phases: list[tuple[str, int, str]] = []

    def forward(self, ids: Tensor, *args: Any, phase: str = "decode", **kwargs: Any) -> Tensor:
        self.phases.append((args[3], len(ids), phase))
        return super().forward(ids, *args, phase=phase, **kwargs)


PROMPTS = [[1, 2, 3, 4], [5, 6]]


def model() -> Phases:
    return Phases(random_tables(8, 0, {"mxfp4a8": 0.5}))


def test_plain_decoding_reads_prompts_in_the_phase_prefill() -> None:
    plain = model()
    generate(plain, PROMPTS, max_new_tokens=5)
    assert plain.phases[0] == ("bf16", 6, "prefill")
    assert [phase for *_, phase in plain.phases[1:]] == ["decode"] * 4


@pytest.mark.parametrize("draft", ["mxfp4", "ngram"])
@pytest.mark.parametrize("enforce_eager", [True, False])
def test_speculation_reads_them_as_plain_decoding_does(draft: str, enforce_eager: bool) -> None:
    target = model()
    speculate(target, PROMPTS, draft=draft, max_new_tokens=5, enforce_eager=enforce_eager)
    prefills = [(precision, tokens) for precision, tokens, phase in target.phases if phase == "prefill"]
    assert prefills == [("bf16", 6)]


def test_a_drafter_with_a_cache_of_its_own_reads_them_too() -> None:
    target, small = model(), model()
    speculate(target, PROMPTS, draft=small, max_new_tokens=5)
    # all but each row's last token, which is the first that it drafts behind
    assert [seen for seen in small.phases if seen[2] == "prefill"] == [("bf16", 6, "prefill")]
    assert small.phases[-1][2] == "decode"
