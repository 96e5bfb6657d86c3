"""Filters against `reference/` and against transformers; drawing at the edges."""

import pytest
import torch
from torch import Tensor

from qspec_decode.sampling import SamplingParams, checked, draw, probabilities
from qspec_kernels import QSpecError, argmax
from reference import sampling as reference
from tests.decode.chi_square import fit

LAST = 1 - 2.0**-53
FILTERS = [(0, 1.0), (1, 1.0), (3, 1.0), (99, 1.0), (0, 0.9), (0, 0.5), (0, 0.01), (5, 0.8), (200, 0.99)]


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_probabilities_equal_the_reference(temperature: float, top_k: int, top_p: float) -> None:
    x = logits(1, 30, 120)
    found = probabilities(x, SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p))
    assert found.dtype is torch.float32
    for row, given in zip(found, x, strict=True):
        expected = reference.probabilities(given, temperature, top_k, top_p)
        assert torch.equal(row > 0, expected.float() > 0)
        assert torch.allclose(row.double(), expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("backend", ["best", "torch"])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
def test_a_row_does_not_depend_on_how_many_there_are(
    request: pytest.FixtureRequest, backend: str, top_p: float
) -> None:
    """A draft reads its distribution alone, verification several: the quotient of equal ones is 1."""
    if backend == "torch":
        request.getfixturevalue("torch_backend")
    x = logits(11, 17, 60_000)
    params = SamplingParams(temperature=0.8, top_p=top_p)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = probabilities(x, params)
        alone = [probabilities(row[None], params)[0] for row in x]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.stack(alone))


def test_a_large_vocabulary_takes_the_same_way() -> None:
    """More ids than one thread's piece of a row."""
    x = logits(10, 3, 7000)
    found = probabilities(x, SamplingParams(temperature=0.7))
    numbers = torch.tensor([0.0, 0.5, LAST], dtype=torch.float64)
    for row, given, number, token in zip(found, x, numbers, draw(found, numbers), strict=True):
        assert torch.allclose(row.double(), reference.probabilities(given, 0.7), rtol=2e-5, atol=1e-12)
        assert reference.draw(row.double(), float(number)) == token
        assert checked([int(argmax(given))]) == [reference.argmax(given)]


@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_probabilities_equal_those_of_transformers(top_k: int, top_p: float) -> None:
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    x = logits(2, 50, 120)
    expected = TemperatureLogitsWarper(0.7)(torch.zeros(1), x)
    if top_k:
        expected = TopKLogitsWarper(top_k)(torch.zeros(1), expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(torch.zeros(1), expected)
    found = probabilities(x, SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p))
    assert torch.allclose(found, expected.softmax(-1), rtol=2e-5, atol=1e-8)


def test_ties_with_the_kth_are_kept_and_top_p_takes_the_lower_of_equals() -> None:
    x = torch.tensor([0.0, 1.0, 1.0, 1.0, -1.0])
    assert (probabilities(x, SamplingParams(temperature=1.0, top_k=2)) > 0).tolist() == [0, 1, 1, 1, 0]
    assert (probabilities(x, SamplingParams(temperature=1.0, top_p=0.4)) > 0).tolist() == [0, 1, 1, 0, 0]


def test_a_row_is_filtered_alike_alone_and_in_a_batch() -> None:
    params = SamplingParams(temperature=0.9, top_k=20, top_p=0.9)
    x = logits(3, 17, 300)
    whole = probabilities(x, params)
    for row in range(17):
        assert torch.equal(probabilities(x[row], params), whole[row])


@pytest.mark.parametrize("temperature", [5e-324, 1e-50, 1e-30, 1e-6])
def test_a_tiny_temperature_takes_the_highest_logit_without_overflow(temperature: float) -> None:
    x = logits(4, 20, 50) * 1e3
    found = probabilities(x, SamplingParams(temperature=temperature))
    assert torch.equal(found, torch.nn.functional.one_hot(x.argmax(-1), 50).float())


def test_masked_ids_have_probability_zero_under_every_filter() -> None:
    x = logits(5, 20, 50)
    x[:, 40:] = -torch.inf
    for top_k, top_p in FILTERS:
        found = probabilities(x, SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p))
        assert (found[:, 40:] == 0).all()
        assert torch.allclose(found.sum(-1), torch.ones(20))


@pytest.mark.parametrize("row", [[0.0, float("nan"), 1.0], [-torch.inf] * 3, [0.0, torch.inf, 1.0]])
def test_logits_without_a_distribution_are_an_error_and_no_id(row: list[float]) -> None:
    """NaN would end behind the last id, and be emitted."""
    bad = torch.tensor([[0.0, 1.0, 2.0], row])
    for params in (SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_k=2, top_p=0.5)):
        with pytest.raises(QSpecError, match="NaN or without a finite maximum"):
            probabilities(bad, params)
    with pytest.raises(QSpecError, match="NaN or without a finite maximum"):
        checked(argmax(bad).tolist())


def test_draw_equals_the_reference_on_a_fine_grid_of_numbers() -> None:
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 4.0, 0.0]) / 4
    for number in (torch.arange(0, 1000) + 0.5) / 1000:
        found = draw(weights, number.double())
        assert int(found) == reference.draw(weights, float(number))


def test_draw_never_gives_an_id_without_weight_at_either_end() -> None:
    generator = torch.Generator().manual_seed(6)
    weights = torch.rand(2000, 30, generator=generator) * (torch.rand(2000, 30, generator=generator) < 0.2)
    weights[:, 17] += 1e-7
    for number in (0.0, 2.0**-53, 0.5, LAST):
        ids = draw(weights, torch.full((2000,), number, dtype=torch.float64))
        assert (weights.gather(1, ids[:, None]) > 0).all()


def test_draw_has_the_distribution_of_its_weights() -> None:
    weights = logits(7, 40).softmax(-1)
    numbers = torch.rand(200_000, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    assert fit(draw(weights.expand(200_000, -1), numbers), weights).passes
    assert fit(draw(17 * weights.expand(200_000, -1), numbers), weights).passes


def test_fit_refuses_a_distribution_that_is_off_by_a_little() -> None:
    """The yardstick: a shift of one part in fifty between two ids of a flat distribution must show."""
    numbers = torch.rand(200_000, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weights = torch.full((16,), 1 / 16)
    shifted = weights.clone()
    shifted[:8] *= 1.03
    shifted[8:] *= 0.97
    assert fit(draw(weights.expand(200_000, -1), numbers), weights).passes
    assert not fit(draw(shifted.expand(200_000, -1), numbers), weights).passes


def test_fit_refuses_what_cannot_happen_and_merges_what_hardly_does() -> None:
    impossible = fit(torch.tensor([0] * 999 + [1]), torch.tensor([1.0, 0.0]))
    assert impossible.chi_square == float("inf")
    assert not impossible.passes
    rare = torch.tensor([0.5, 0.4999] + [1e-6] * 100)
    assert fit(torch.arange(10_000) % 2, rare).df == 1
