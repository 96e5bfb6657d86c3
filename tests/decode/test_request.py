"""Bad input to a decoding call: an error that names the value, what is expected, and the way out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qspec_decode.generate import generate
from qspec_decode.ladder import DraftModel
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculate import speculate
from qspec_decode.speculative_config import SpeculativeConfig
from qspec_kernels import QSpecError, UsageError
from tests.decode.tabular import TabularModel, random_tables

POSITIONS = 10


def model(vocab: int = 5, **noise: float) -> TabularModel:
    return TabularModel(random_tables(vocab, 0, noise or {"mxfp4a8": 0.5, "w4a8": 0.5}), POSITIONS)


def decode_plain(input_ids: Any, **options: Any) -> Any:
    return generate(model(), input_ids, **{"max_new_tokens": 3} | options)


def decode_speculatively(input_ids: Any, **options: Any) -> Any:
    return speculate(model(), input_ids, **{"draft": "mxfp4", "max_new_tokens": 3} | options)


Decode = Callable[..., Any]
both = pytest.mark.parametrize("decode", [decode_plain, decode_speculatively])


@both
@pytest.mark.parametrize(
    ("input_ids", "words"),
    [
        ([], ["no rows", "at least one prompt"]),
        ([[1], []], ["prompt 1 is empty", "at least one token"]),
        ([[1], [2, 5]], ["prompt 1", "id 5", "0 .. 4"]),
        ([[-1]], ["prompt 0", "id -1", "0 .. 4"]),
        ([[1] * POSITIONS], ["10 tokens", "10 positions"]),
        (torch.zeros(0, 3, dtype=torch.int64), ["no rows"]),
        (torch.zeros(2, 0, dtype=torch.int64), ["prompt 0 is empty"]),
        (torch.tensor([[1, 7]]), ["id 7", "0 .. 4"]),
        (torch.zeros(1, 2, 3, dtype=torch.int64), ["(1, 2, 3)", "[batch, length]"]),
        (torch.tensor([[1.0, 2.5]]), ["float32", "integer"]),
    ],
)
def test_bad_prompts(decode: Decode, input_ids: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        decode(input_ids)
    for word in words:
        assert word in str(error.value)


@both
@pytest.mark.parametrize("shape", [(2, 4), (1, 5), (3, 5), (5,), (10,)])
def test_a_mask_of_another_shape(decode: Decode, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"\(2, 5\).*\[batch, length\]"):
        decode(torch.ones(2, 5, dtype=torch.int64), attention_mask=torch.ones(shape))


@both
def test_a_mask_that_hides_a_whole_row(decode: Decode) -> None:
    with pytest.raises(UsageError, match="prompt 1 is empty"):
        decode(torch.ones(2, 3, dtype=torch.int64), attention_mask=torch.tensor([[0, 1, 1], [0, 0, 0]]))


@both
def test_a_mask_for_a_list_of_prompts(decode: Decode) -> None:
    with pytest.raises(UsageError, match="attention_mask was given with a list"):
        decode([[1, 2]], attention_mask=torch.ones(1, 2))


@both
def test_a_single_row_may_come_without_a_batch_dimension(decode: Decode) -> None:
    ids = torch.tensor([1, 2, 3])
    assert decode(ids).token_ids == decode([[1, 2, 3]]).token_ids
    mask = torch.tensor([0, 1, 1])
    assert decode(ids, attention_mask=mask).token_ids == decode([[2, 3]]).token_ids


@both
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("temperature", -0.1, ["-0.1", ">= 0"]),
        ("temperature", float("nan"), ["nan", ">= 0"]),
        ("temperature", float("inf"), ["inf", "finite"]),
        ("top_k", -1, ["-1", "at least 0"]),
        ("top_p", 0.0, ["0.0", "0 < top_p <= 1"]),
        ("top_p", 1.01, ["1.01", "0 < top_p <= 1"]),
        ("top_p", float("nan"), ["nan", "0 < top_p <= 1"]),
        ("max_new_tokens", 0, ["0", "at least 1"]),
        ("max_new_tokens", -3, ["-3", "at least 1"]),
        ("seed", -1, ["-1", "2**63"]),
        ("seed", [1, 2], ["2 seeds", "1 rows"]),
    ],
)
def test_options_out_of_range(decode: Decode, option: str, value: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        decode([[1]], **{option: value})
    assert option.split("_")[0] in str(error.value)
    for word in words:
        assert word in str(error.value)


@both
def test_an_unknown_option_is_a_type_error(decode: Decode) -> None:
    with pytest.raises(TypeError, match="do_sample"):
        decode([[1]], do_sample=True)


@both
def test_an_unknown_precision_lists_the_known_ones(decode: Decode) -> None:
    with pytest.raises(UsageError, match=r"unknown precision 'int8'.*bf16.*w4a16.*mxfp4"):
        decode([[1]], target="int8")


@both
def test_a_precision_that_was_not_loaded_says_how_to_load_it(decode: Decode) -> None:
    with pytest.raises(UsageError, match="bf16, mxfp4a8, w4a8, not for w4a16") as error:
        decode([[1]], target="w4a16")
    assert "precisions=('bf16', 'mxfp4a8', 'w4a8', 'w4a16')" in error.value.hint


@both
@pytest.mark.parametrize(("option", "value"), [("temperature", 0.7), ("max_new_tokens", 9), ("seed", 4)])
def test_an_option_given_twice_with_two_values(decode: Decode, option: str, value: Any) -> None:
    params = SamplingParams(temperature=0.5, max_new_tokens=5, seed=3)
    with pytest.raises(UsageError, match=f"{option} is {value}.*in sampling") as error:
        decode([[1]], sampling=params, **{"max_new_tokens": None, option: value})
    assert error.value.hint == "Give it in one place."


@both
def test_an_option_given_twice_with_one_value_or_beside_others(decode: Decode) -> None:
    params = SamplingParams(temperature=0.5, max_new_tokens=5)
    out = decode([[1]], sampling=params, temperature=0.5, max_new_tokens=None, seed=3)
    assert out.token_ids == decode([[1]], temperature=0.5, max_new_tokens=5, seed=3).token_ids


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        ([], ["draft is empty", "at least one"]),
        ("int8", ["unknown precision 'int8'"]),
        (["mxfp4", "w4a4"], ["not for w4a4"]),
        (["ngram", "mxfp4"], ["ngram", "last draft"]),
        (["mxfp4", "ngram", "ngram"], ["ngram", "last draft"]),
        (["auto", "mxfp4"], ["auto", "2 levels", "expected it alone"]),
        (("auto", "ngram"), ["auto", "2 levels", "expected it alone"]),
        (None, ["draft names None", "loaded models", "generate()"]),
        (["mxfp4", 4], ["draft names 4", "loaded models"]),
        (model(6), ["'small' has 6 tokens, the target 5"]),
        (["mxfp4", DraftModel(model(7), name="sib")], ["'sib' has 7 tokens, the target 5"]),
        (DraftModel(model(), precision="w4a16"), ["not for w4a16"]),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_ladders(draft: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        decode_speculatively([[1]], draft=draft)
    for word in words:
        assert word in str(error.value)


def test_auto_has_no_draft_for_an_mxfp4_target() -> None:
    with pytest.raises(UsageError, match="no default draft for target mxfp4a8"):
        decode_speculatively([[1]], target="mxfp4", draft="auto")


@pytest.mark.parametrize(
    ("k", "words"),
    [
        (0, ["num_speculative_tokens is 0", "at least 1"]),
        (-2, ["-2", "at least 1"]),
        ([3, 0], ["0", "at least 1"]),
        ([3], ["1 entries for 2"]),
        ([3, 2, 1], ["3 entries for 2"]),
        (2.5, ["num_speculative_tokens is 2.5", "integer"]),
        ("3", ["num_speculative_tokens is '3'", "integer"]),
        (True, ["num_speculative_tokens is True", "integer"]),
        ([3, 2.5], ["num_speculative_tokens is 2.5", "integer"]),
        ([3, None], ["num_speculative_tokens is None", "integer"]),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_numbers_of_drafts(k: Any, words: list[str]) -> None:
    for options in (
        lambda: {"num_speculative_tokens": k},
        lambda: {"config": SpeculativeConfig(num_speculative_tokens=k)},
    ):
        with pytest.raises(UsageError) as error:
            decode_speculatively([[1]], draft=["mxfp4", "w4a8"], **options())
        for word in words:
            assert word in str(error.value)


def test_two_numbers_of_drafts_that_differ() -> None:
    config = SpeculativeConfig(num_speculative_tokens=3)
    with pytest.raises(UsageError, match="4 as a keyword and 3 in config"):
        decode_speculatively([[1]], config=config, num_speculative_tokens=4)
    decode_speculatively([[1]], config=config, num_speculative_tokens=3)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (3, 2), (1.5, 3), (1, "4"), (True, 4)])
@pytest.mark.usefixtures("untyped")
def test_bad_lengths_of_ngrams(low: Any, high: Any) -> None:
    with pytest.raises(UsageError, match="1 <= min <= max"):
        SpeculativeConfig(prompt_lookup_min=low, prompt_lookup_max=high)


def test_usage_errors_are_value_errors_of_the_one_base_class() -> None:
    for kind in (ValueError, QSpecError):
        with pytest.raises(kind):
            decode_plain([[]])


def test_a_refused_call_has_not_touched_the_model() -> None:
    refused = model()
    for options in ({"draft": ["ngram", "mxfp4"]}, {"draft": "int8"}, {"draft": "mxfp4", "seed": [1, 2]}):
        with pytest.raises(UsageError):
            speculate(refused, [[1]], max_new_tokens=3, **options)
    assert not refused.calls
