"""B10: what a row says does not depend on its neighbours, its place, or its padding."""

import random
from typing import Any

import pytest
import torch

from qspec_decode.ladder import DraftModel
from qspec_decode.output import DecodingOutput
from qspec_decode.speculate import speculate
from tests.decode.tabular import TabularModel, random_tables

VOCAB = 23
LADDERS = ["mxfp4", "small", "ngram", "mxfp4 small", "mxfp4 w4a8 w4a4", "small mxfp4", "mxfp4 small ngram"]
ROWS = 12


def run(ladder: str, prompts: Any, temperature: float, seed: Any, **options: Any) -> DecodingOutput:
    tables = random_tables(VOCAB, 4, {"mxfp4a8": 0.6, "w4a8": 0.9, "w4a4": 1.5, "small": 1.0})
    small = DraftModel(TabularModel({"bf16": tables.pop("small")}))
    return speculate(
        TabularModel(tables, max_positions=40, eos_token_ids=(0,)),
        prompts,
        draft=[small if name == "small" else name for name in ladder.split()],
        num_speculative_tokens=3,
        max_new_tokens=25,
        temperature=temperature,
        seed=seed,
        **options,
    )


def ragged_prompts() -> list[list[int]]:
    rng = random.Random(7)
    # the first two are twins: only their seeds differ
    rows = [[rng.randrange(1, VOCAB) for _ in range(rng.randint(1, 20))] for _ in range(ROWS - 1)]
    return [rows[0], *rows]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("ladder", LADDERS)
class TestRows:
    def test_alone_as_in_the_batch(self, ladder: str, temperature: float) -> None:
        """Tokens, and also rounds: the statistics of the rows add up to those of the batch."""
        prompts = ragged_prompts()
        whole = run(ladder, prompts, temperature, 31)
        alone = [run(ladder, [p], temperature, [s]) for p, s in zip(prompts, whole.seeds, strict=True)]
        assert [out.token_ids[0] for out in alone] == whole.token_ids
        assert [out.finish_reasons[0] for out in alone] == whole.finish_reasons
        for level, stats in enumerate(whole.levels):
            for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_refused"):
                assert getattr(stats, name) == sum(getattr(out.levels[level], name) for out in alone)

    def test_in_any_order_and_company(self, ladder: str, temperature: float) -> None:
        prompts = ragged_prompts()
        whole = run(ladder, prompts, temperature, 31)
        rng = random.Random(1)
        for size in (2, 5, ROWS):
            rows = rng.sample(range(ROWS), size)
            part = run(ladder, [prompts[r] for r in rows], temperature, [whole.seeds[r] for r in rows])
            assert part.token_ids == [whole.token_ids[r] for r in rows]

    def test_padded_on_either_side(self, ladder: str, temperature: float) -> None:
        prompts = ragged_prompts()
        whole = run(ladder, prompts, temperature, 31)
        longest = max(map(len, prompts)) + 3
        for left in (True, False):
            ids, mask = torch.full((2, ROWS, longest), 9)
            mask[:] = 0
            for row, prompt in enumerate(prompts):
                at = slice(longest - len(prompt), longest) if left else slice(0, len(prompt))
                ids[row, at], mask[row, at] = torch.tensor(prompt), 1
            padded = run(ladder, ids, temperature, 31, attention_mask=mask)
            assert padded.token_ids == whole.token_ids


def test_equal_prompts_under_different_row_seeds_differ_when_sampled() -> None:
    out = run("mxfp4", ragged_prompts(), 0.8, 31)
    assert out.token_ids[0] != out.token_ids[1]
    greedy = run("mxfp4", ragged_prompts(), 0.0, 31)
    assert greedy.token_ids[0] == greedy.token_ids[1]
