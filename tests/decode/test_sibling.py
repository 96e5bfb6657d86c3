"""Draft models whose vocabulary is padded to another length, or is another one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qspec_decode.generate import generate
from qspec_decode.ladder import DraftModel
from qspec_decode.speculate import speculate
from qspec_kernels import UsageError
from reference import accept, sampling
from tests.decode.chi_square import cells, fit
from tests.decode.tabular import TabularModel, random_tables

REAL = 16
PROMPTS = [[1, 2, 3], [4], [15, 0]]
# by what they do to the width: a sibling with a longer table, one with a shorter, one with no padding at all
WIDTHS = [23, 18, REAL]


def known(model: TabularModel, vocabulary: str = "one") -> TabularModel:
    """The model with the digest of a tokenizer."""
    model.vocabulary = vocabulary  # type: ignore[attr-defined]
    return model


def padded(table: Tensor, width: int) -> TabularModel:
    """A model whose table is longer than its vocabulary; ids that pad it are never emitted."""
    wide = torch.full((width, width, width), -torch.inf)
    wide[:REAL, :REAL, :REAL] = table
    wide[REAL:, :, 0] = wide[:, REAL:, 0] = 0.0
    return known(TabularModel({"bf16": wide}))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_sibling_of_another_width_drafts_as_well_as_one_of_the_same(width: int, temperature: float) -> None:
    table = random_tables(REAL, 1, {})["bf16"]
    target, small = padded(table, 20), padded(table, width)
    options: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_new_tokens": 40}
    out = speculate(target, PROMPTS, draft=[DraftModel(small), "ngram"], **options)
    assert out.levels[0].num_draft_tokens > 60
    # sampled, sums over tables of different lengths may round differently
    assert out.levels[0].acceptance_rate == 1.0 if temperature == 0 else out.levels[0].acceptance_rate > 0.99
    if temperature == 0:
        assert out.token_ids == generate(target, PROMPTS, **options).token_ids


def test_two_levels_of_a_sibling_of_another_width_share_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_tables(REAL, 1, {})["bf16"]
    target, small = padded(table, 20), padded(table, 18)
    small.tables["w4a8"] = small.tables["bf16"]
    small.precisions = ("bf16", "w4a8")
    made: list[str] = []
    new_cache: Callable[..., Any] = small.new_cache
    monkeypatch.setattr(small, "new_cache", lambda *args: made.append(args[-1]) or new_cache(*args))
    out = speculate(target, PROMPTS, draft=[small, DraftModel(small, "w4a8")], max_new_tokens=30)
    assert out.token_ids == generate(target, PROMPTS, max_new_tokens=30).token_ids
    assert [level.acceptance_rate for level in out.levels] == [1.0, 1.0]
    assert made == ["bf16"]


@pytest.mark.parametrize("width", [3, 7])
def test_ids_that_only_one_of_the_two_has_leave_the_output_lossless(width: int) -> None:
    """All ids are emitted, those beyond a sibling's table included, and a sibling drafts all of its own."""
    target = known(TabularModel(random_tables(5, 3, {})))
    small = known(TabularModel(random_tables(width, 4, {})))
    prompts = [[4, 1], [2, 4]] * 20
    greedy = speculate(target, prompts, draft=small, max_new_tokens=30)
    assert greedy.token_ids == generate(target, prompts, max_new_tokens=30).token_ids

    rows = 30_000
    out = speculate(target, [[4, 1]] * rows, draft=small, temperature=1.0, seed=5, max_new_tokens=3)
    table = target.tables["bf16"]
    exact = accept.joint(lambda context: sampling.probabilities(table[context[-2:]], 1.0), (4, 1), 3)
    found = fit(cells(torch.tensor(out.token_ids), 5), exact)
    assert found.passes, found
    assert bool((torch.tensor(out.token_ids) == 4).any())


def test_another_tokenizer_is_refused_whatever_its_size() -> None:
    tables = random_tables(5, 3, {})
    for width in (5, 7):
        other = known(TabularModel(random_tables(width, 4, {})), "two")
        with pytest.raises(UsageError, match="'sib' has another tokenizer") as error:
            speculate(known(TabularModel(tables)), [[1]], draft=DraftModel(other, name="sib"))
        assert "same family" in error.value.hint


def test_without_both_tokenizers_the_sizes_must_be_equal() -> None:
    target, other = known(TabularModel(random_tables(5, 3, {}))), TabularModel(random_tables(7, 4, {}))
    with pytest.raises(UsageError, match="'small' has 7 tokens, the target 5") as error:
        speculate(target, [[1]], draft=other)
    assert "tokenizer.json" in error.value.hint
    equal = TabularModel(random_tables(5, 4, {}))
    speculate(target, [[1]], draft=equal, max_new_tokens=4)
