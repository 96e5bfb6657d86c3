"""Inputs that look plausible and would give another text, or a crash, without a word."""

import pytest
import torch

from qspec_decode import generate, speculate
from qspec_kernels import QSpecError, UsageError
from tests.decode.tabular import TabularModel, random_tables

MODEL = TabularModel(random_tables(7, 1, {"mxfp4a8": 0.3}))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1, 2, 3], "prompt 0 is 1; expected a list"),
        ("hello", "prompt 0 is 'h'; expected a list"),
        ([[1.5, 2]], "prompt 0 holds 1.5; expected integer"),
        ([[1, True]], "prompt 0 holds True; expected integer"),
        ([["a"]], "prompt 0 holds 'a'; expected integer"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_prompts_are_lists_of_integers(prompt: object, message: str) -> None:
    for decode in (generate, speculate):
        with pytest.raises(UsageError, match=message):
            decode(MODEL, prompt)  # type: ignore[arg-type]


def test_a_mask_with_a_hole_is_refused() -> None:
    ids, mask = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 0, 1, 1]])
    with pytest.raises(UsageError, match="row 0 leaves out tokens in the middle"):
        generate(MODEL, ids, mask)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_numbers_are_refused(temperature: float) -> None:
    broken = TabularModel({name: table * float("nan") for name, table in MODEL.tables.items()})
    for decode in (generate, speculate):
        with pytest.raises(QSpecError, match="NaN"):
            decode(broken, [[1, 2]], temperature=temperature)
