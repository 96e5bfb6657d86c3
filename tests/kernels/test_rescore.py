"""`rescore` against its definition, and the rows' independence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qspec_kernels as qk
from qspec_kernels import UsageError
from reference.rescore import best
from reference.rescore import rescore as exact_rescore
from tests.kernels.cases import FLOATS, assert_within_bound, linear_bound, same_bits

pytestmark = pytest.mark.usefixtures("poisoned")


def check(rng: torch.Generator, m: int, n: int, k: int, count: int, levels: int) -> None:
    # few distinct values make ties
    logits = torch.randint(levels, (m, n), generator=rng).float()
    logits[torch.rand(m, n, generator=rng) < 0.2] = -torch.inf
    x, weight = torch.randn(m, k, generator=rng), torch.randn(n, k, generator=rng).bfloat16()
    bias = torch.randn(n, generator=rng)
    expected, exact = logits.clone(), qk.linear(x, weight, bias)
    for row in range(m):
        chosen = best(logits[row], count)
        expected[row, chosen] = exact[row, chosen]
    qk.rescore(logits, x, weight, bias, count=count)
    assert torch.equal(logits.isinf(), expected.isinf())
    finite = ~expected.isinf()
    assert torch.equal((logits == expected) | ~finite, torch.ones_like(finite))


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 37, 100), (2, 1000, 64), (5, 64, 33)])
@pytest.mark.parametrize("count", [1, 2, 32, 5000])
@pytest.mark.parametrize("levels", [3, 100_000])
def test_definition(backend, rng, m, n, k, count, levels):
    check(rng, m, n, k, count, levels)


@settings(max_examples=25)
@given(
    m=st.integers(1, 5),
    n=st.integers(1, 60),
    k=st.integers(1, 200),
    count=st.integers(1, 70),
    dtype=st.sampled_from(FLOATS),
    biased=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_shape(backend, m, n, k, count, dtype, biased, seed):
    rng = torch.Generator().manual_seed(seed)
    logits, x = torch.randn(m, n, generator=rng), torch.randn(m, k, generator=rng).to(dtype)
    logits[torch.rand(m, n, generator=rng) < 0.1] = -torch.inf
    weight = torch.randn(n, k, generator=rng).bfloat16()
    bias = torch.randn(n, generator=rng) if biased else None
    expected, rough = exact_rescore(logits, x, weight, bias, count), logits.clone()
    qk.rescore(logits, x, weight, bias, count=count)
    kept = expected == rough
    assert same_bits(logits[kept], rough[kept])
    # a linear of bfloat16 x gives bfloat16
    assert same_bits(logits[~kept], logits[~kept].to(dtype).float())
    bound = linear_bound(x.bfloat16(), weight.double(), bias) + torch.finfo(dtype).eps * expected.abs()
    assert_within_bound(logits[~kept], expected[~kept], bound[~kept])


@given(st.integers(1, 6), st.integers(1, 40))
def test_rows_do_not_depend_on_each_other(backend, rng, m, count):
    logits, x = torch.randn(m, 50, generator=rng), torch.randn(m, 40, generator=rng).bfloat16()
    weight = torch.randn(50, 40, generator=rng).bfloat16()
    alone = [logits[i : i + 1].clone() for i in range(m)]
    qk.rescore(logits, x, weight, count=count)
    for i, row in enumerate(alone):
        qk.rescore(row, x[i : i + 1], weight, count=count)
        assert same_bits(row[0], logits[i])


def test_what_does_not_fit_is_refused(torch_backend, untyped):
    x, weight = torch.ones(2, 4), torch.ones(3, 4).bfloat16()
    for logits, other, count in (
        (torch.ones(2, 3), weight.float(), 1),
        (torch.ones(2, 3).double(), weight, 1),
        (torch.ones(2, 3), weight, 0),
        (torch.ones(3, 2).t(), weight, 1),
        (torch.ones(1, 3), weight, 1),
        (torch.ones(2, 4), weight, 1),
    ):
        with pytest.raises(UsageError):
            qk.rescore(logits, x, other, count=count)


def test_the_wrong_tokens_are_noticed(mutate, rng):
    mutate("rescore", lambda right, logits, *rest: right(logits.neg_(), *rest) or logits.neg_())
    with pytest.raises(AssertionError):
        check(rng, 1, 1, 1, 1, 3)


def test_an_input_that_is_not_rounded_is_noticed(mutate):
    mutate("rescore", lambda right, logits, x, *rest: right(logits, x.double(), *rest))
    with pytest.raises(AssertionError, match="exceeds the bound"):
        test_any_shape.hypothesis.inner_test("torch", 2, 10, 40, 3, torch.float32, False, 0)
