"""`rescore`, interpreted: its definition, ties, NaN, and rows that do not depend on each other."""

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels.backends.triton import rescore
from tests.gpu.interpreted.served import served
from tests.kernels.cases import same_bits
from tests.kernels.test_rescore import best

# numpy warns of what floating point defines
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def mutate(monkeypatch, poisoned):
    # the interpreter takes its time to sort: chunks of a few
    monkeypatch.setattr(rescore, "CHUNK", 16)
    monkeypatch.setattr(rescore, "LARGEST_COUNT", 8)
    yield from served(monkeypatch)


# one chunk and several, the last one shorter; counts of no power of two; more than there are; by a whole sort
@pytest.mark.parametrize(
    ("m", "n", "k", "count", "biased"),
    [
        (1, 1, 1, 1, False),
        (1, 1, 1, 5000, True),
        (3, 14, 70, 3, True),
        (2, 37, 100, 1, False),
        (2, 37, 33, 7, False),
        (1, 70, 33, 8, True),
        (2, 37, 33, 9, True),
        (1, 20, 33, 5000, False),
    ],
)
def test_definition(rng, m, n, k, count, biased):
    check(rng, m, n, k, count, biased)


def check(rng, m, n, k, count, biased):
    # few distinct values make ties
    logits = torch.randint(3, (m, n), generator=rng).float() - 1
    logits[torch.rand(m, n, generator=rng) < 0.2] = -torch.inf
    logits[logits == 0] *= -1
    x = torch.randn(m, k, generator=rng).bfloat16().float()
    weight, bias = torch.randn(n, k, generator=rng).bfloat16(), torch.randn(n, generator=rng)
    exact = x.double() @ weight.double().T + (bias.double() if biased else 0)
    before = logits.clone()
    qk.rescore(logits, x, weight, bias if biased else None, count=count)
    for row in range(m):
        chosen = best(before[row], count)
        expected = before[row].double()
        expected[chosen] = exact[row, chosen]
        torch.testing.assert_close(logits[row].double(), expected, rtol=1e-5, atol=1e-5)
        kept = torch.ones(n, dtype=torch.bool)
        kept[chosen] = False
        assert same_bits(logits[row, kept], before[row, kept])


@pytest.mark.parametrize("count", [2, 9])
def test_nan_takes_a_place_and_stays(count):
    logits = torch.arange(30.0)[None].clone()
    logits[0, [3, 20]] = torch.tensor([torch.nan, torch.inf])
    qk.rescore(logits, torch.ones(1, 4), torch.full((30, 4), 8.0).bfloat16(), count=count)
    assert logits[0, 3].isnan()
    assert logits[0, 20] == 32
    assert (logits == 32).sum() == count - 1


@pytest.mark.parametrize("count", [3, 9])
def test_rows_do_not_depend_on_each_other(rng, count):
    logits, x = torch.randn(3, 30, generator=rng), torch.randn(3, 40, generator=rng)
    weight = torch.randn(30, 40, generator=rng).bfloat16()
    alone = [logits[i : i + 1].clone() for i in range(3)]
    qk.rescore(logits, x, weight, count=count)
    for i, row in enumerate(alone):
        qk.rescore(row, x[i : i + 1], weight, count=count)
        assert same_bits(row[0], logits[i])


def test_the_wrong_tokens_are_noticed(mutate, rng):
    mutate("rescore", lambda right, logits, *rest: right(logits.neg_(), *rest) or logits.neg_())
    with pytest.raises(AssertionError):
        check(rng, 2, 37, 4, 3, False)
