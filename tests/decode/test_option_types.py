"""Values of another type: numpy's and torch's numbers are taken, what is no number is refused by name."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qspec_decode.generate import generate
from qspec_decode.ladder import DraftModel
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculate import speculate
from qspec_decode.speculative_config import SpeculativeConfig
from qspec_kernels import UsageError
from tests.decode.test_request import Decode, both, decode_speculatively, model


@both
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("max_new_tokens", 2.5, "2.5"),
        ("max_new_tokens", "3", "'3'"),
        ("max_new_tokens", True, "True"),
        ("temperature", "1", "'1'"),
        ("temperature", True, "True"),
        ("temperature", torch.tensor([1.0, 2.0]), "tensor"),
        ("temperature", 10**400, "1000"),
        ("top_k", 2.5, "2.5"),
        ("top_k", np.float32(3), "3.0"),
        ("top_k", torch.tensor(True), "True"),
        ("top_p", "0.9", "'0.9'"),
        ("top_p", True, "True"),
        ("seed", 1.5, "1.5"),
        ("seed", "x", "'x'"),
        ("seed", True, "True"),
        ("seed", [1.5], "1.5"),
        ("seed", [(1, 2, 3)], "(1, 2, 3)"),
        ("seed", [(1, None)], "(1, None)"),
        ("seed", {1: 2}, "{1: 2}"),
        ("eos_token_id", 2.5, "2.5"),
        ("eos_token_id", "2", "'2'"),
        ("eos_token_id", [1, None], "[1, None]"),
        ("eos_token_id", 5, "5; expected ids in 0 .. 4"),
        ("eos_token_id", (1, -1), "-1; expected ids in 0 .. 4"),
        ("sampling", {"temperature": 1.0}, "{'temperature': 1.0}"),
        ("target", ["bf16"], "['bf16']"),
        ("target", None, "None"),
    ],
)
def test_options_of_another_type(decode: Decode, option: str, value: Any, named: str) -> None:
    with pytest.raises(UsageError) as error:
        decode([[1]], **{option: value})
    assert {"target": "precision"}.get(option, option) in error.value.message
    assert named in error.value.message
    assert "expected" in error.value.message
    assert error.value.hint


@both
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("integer", [np.int64, np.uint8, torch.tensor], ids=["int64", "uint8", "tensor"])
def test_scalars_of_numpy_and_torch_are_numbers(decode: Decode, integer: Callable[[int], Any]) -> None:
    options = {"max_new_tokens": 4, "top_k": 3, "seed": 7, "eos_token_id": 2}
    expected = decode([[1, 3]], temperature=0.5, **options)
    wrapped = {name: integer(value) for name, value in options.items()}
    found = decode([[integer(1), integer(3)]], temperature=np.float64(0.5), **wrapped)
    assert json.dumps(found.to_dict()["token_ids"]) == json.dumps(expected.token_ids)
    assert json.dumps(found.to_dict()["seeds"]) == "[[7, 0]]"
    several = decode(np.array([[1, 3]]), temperature=0.5, **options | {"seed": np.array([[7, 0]])})
    assert several.token_ids == expected.token_ids


@both
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("input_ids", [None, 3, {"input_ids": [[1]]}])
def test_prompts_that_are_no_sequence(decode: Decode, input_ids: Any) -> None:
    with pytest.raises(UsageError, match=r"input_ids is .*expected a tensor"):
        decode(input_ids)


@both
@pytest.mark.usefixtures("untyped")
def test_a_mask_that_is_no_tensor(decode: Decode) -> None:
    with pytest.raises(UsageError, match="attention_mask is a list; expected a tensor"):
        decode(torch.tensor([[1, 2]]), attention_mask=[[1, 1]])


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("decode", [generate, speculate])
def test_a_model_that_is_not_loaded(decode: Decode) -> None:
    with pytest.raises(UsageError, match="model is 'demo'; expected a loaded model") as error:
        decode("demo", [[1]])
    assert "load" in error.value.hint


@pytest.mark.usefixtures("untyped")
def test_a_draft_model_that_is_not_loaded_or_has_no_such_precision() -> None:
    with pytest.raises(UsageError, match=r"model='small'.*expected .*loaded models") as error:
        decode_speculatively([[1]], draft=DraftModel("small"))  # type: ignore[arg-type]
    assert "load(...)" in error.value.hint
    with pytest.raises(UsageError, match="precision is 3; expected a name"):
        decode_speculatively([[1]], draft=DraftModel(model(), precision=3))  # type: ignore[arg-type]


@both
def test_equal_values_in_two_forms_are_no_contradiction(decode: Decode) -> None:
    params = SamplingParams(temperature=0.5, seed=(3, 4), eos_token_id=(4, 2))
    decode([[1], [2]], sampling=params, max_new_tokens=None, seed=[(3, 0), 4], eos_token_id=[2, 4])


@pytest.mark.usefixtures("untyped")
def test_numbers_of_drafts_in_many_forms() -> None:
    config = SpeculativeConfig(num_speculative_tokens=[3, 2])
    for k in ((3, 2), [3, 2], np.array([3, 2]), torch.tensor([3, 2]), None):
        decode_speculatively([[1]], draft=["mxfp4", "ngram"], config=config, num_speculative_tokens=k)
    for k in (np.int32(2), torch.tensor(2), 10**30):
        decode_speculatively([[1]], num_speculative_tokens=k)
    with pytest.raises(UsageError, match="config is 3; expected a SpeculativeConfig"):
        decode_speculatively([[1]], config=3)
