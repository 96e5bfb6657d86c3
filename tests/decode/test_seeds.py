"""B11: the same seed gives the same text, no seed another; a result's seeds reproduce its rows."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from qspec_decode.generate import generate
from qspec_decode.output import DecodingOutput
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculate import speculate
from tests.decode.tabular import TabularModel, random_tables

PROMPTS = [[1, 2], [3], [4, 5, 6], [1, 2]]


def model() -> TabularModel:
    return TabularModel(random_tables(40, 1, {"mxfp4a8": 0.6, "w4a8": 1.0}))


def speculated(prompts: list[list[int]], **options: Any) -> DecodingOutput:
    return speculate(model(), prompts, draft=["mxfp4", "w4a8"], max_new_tokens=24, temperature=0.8, **options)


def plain(prompts: list[list[int]], **options: Any) -> DecodingOutput:
    return generate(model(), prompts, max_new_tokens=24, temperature=0.8, **options)


Decode = Callable[..., DecodingOutput]
both = pytest.mark.parametrize("decode", [speculated, plain])


@both
def test_the_same_seed_gives_the_same_tokens(decode: Decode) -> None:
    assert decode(PROMPTS, seed=5).token_ids == decode(PROMPTS, seed=5).token_ids
    assert decode(PROMPTS, seed=5).token_ids != decode(PROMPTS, seed=6).token_ids


@both
def test_without_a_seed_every_call_differs_and_returns_seeds_that_reproduce_it(decode: Decode) -> None:
    first, second = decode(PROMPTS), decode(PROMPTS)
    assert first.token_ids != second.token_ids
    assert decode(PROMPTS, seed=first.seeds).token_ids == first.token_ids


@both
def test_a_subset_of_rows_is_reproduced_by_its_seeds(decode: Decode) -> None:
    whole = decode(PROMPTS, seed=77)
    assert whole.seeds == [(77, row) for row in range(4)]
    rows = [3, 1]
    part = decode([PROMPTS[row] for row in rows], seed=[whole.seeds[row] for row in rows])
    assert part.token_ids == [whole.token_ids[row] for row in rows]


@both
def test_seeds_survive_json(decode: Decode) -> None:
    whole = decode(PROMPTS, seed=78)
    seeds = json.loads(json.dumps(whole.to_dict()))["seeds"]
    assert decode(PROMPTS, seed=[tuple(pair) for pair in seeds]).token_ids == whole.token_ids


@both
def test_one_integer_per_row_is_row_zero_of_that_seed(decode: Decode) -> None:
    assert decode([[3]], seed=[9]).token_ids == decode([[3]], seed=9).token_ids


@both
def test_equal_prompts_of_one_batch_get_different_texts(decode: Decode) -> None:
    out = decode(PROMPTS, seed=5)
    assert out.token_ids[0] != out.token_ids[3]


def test_the_seed_may_stand_in_the_sampling_parameters() -> None:
    params = SamplingParams(temperature=0.8, max_new_tokens=24, seed=5)
    out = speculate(model(), PROMPTS, draft=["mxfp4", "w4a8"], sampling=params)
    assert out.token_ids == speculated(PROMPTS, seed=5).token_ids


def test_a_greedy_text_does_not_depend_on_the_seed() -> None:
    outs = [speculate(model(), PROMPTS, draft="mxfp4", max_new_tokens=20, seed=seed) for seed in (1, 2, None)]
    assert outs[0].token_ids == outs[1].token_ids == outs[2].token_ids
