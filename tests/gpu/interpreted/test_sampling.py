"""Choices and draws, interpreted, their rows cut into pieces of a few values."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import qspec_kernels as qk
from qspec_kernels.backends.torch import draw as torch_draw
from qspec_kernels.backends.torch import draw_residual as torch_draw_residual
from qspec_kernels.backends.triton import _draw, _pieces
from reference import sampling
from tests.gpu.interpreted.served import served
from tests.kernels import test_sampling_ops as checks
from tests.kernels.cases import assert_within_budget, same_bits

PIECE, LINE = 16, 4
WIDTHS = [1, 2, 7, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5]
# numpy warns of what floating point defines
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def mutate(monkeypatch, poisoned):
    monkeypatch.setattr(_pieces, "PIECE", PIECE)
    monkeypatch.setattr(_draw, "LINE", LINE)
    yield from served(monkeypatch)


@pytest.mark.parametrize("n", WIDTHS)
def test_argmax(rng, n):
    check_argmax(rng, n)


def check_argmax(rng, n):
    x = torch.randint(0, 9, (9, n), generator=rng).float() - 4
    x[1] = -torch.inf
    x[2, n // 2] = torch.nan
    x[3, -1], x[4, -1] = torch.inf, -torch.nan
    x[5, : n - 1] = -torch.inf
    x[6] = -3e38
    assert qk.argmax(x).tolist() == [sampling.argmax(row) for row in x]


def test_argmax_takes_the_lowest_of_equals():
    x = torch.zeros(1, 3 * PIECE)
    for places in ([3 * PIECE - 1], [PIECE, PIECE + 1], [PIECE - 1, PIECE, 2 * PIECE], [0, 5]):
        x.zero_()
        x[0, places] = 1.0
        assert qk.argmax(x).tolist() == places[:1]
    assert qk.argmax(torch.tensor([[-0.0, 0.0], [0.0, -0.0]])).tolist() == [0, 0]


@pytest.mark.parametrize("n", WIDTHS)
def test_top2(rng, n):
    check_top2(rng, n)


def check_top2(rng, n):
    x = torch.randint(0, 9, (12, n), generator=rng).float() - 4
    x[1] = -torch.inf
    x[2, n // 2] = torch.nan
    x[3, -1], x[4, -1] = torch.inf, -torch.nan
    x[5, : n - 1] = -torch.inf
    x[6] = -3e38
    x[7, 0], x[7, -1] = 7.0, 6.5
    x[8, 0], x[8, -1] = 6.5, 7.0
    x[9, 0] = x[9, -1] = 7.0
    x[10] = -torch.rand(n, generator=rng)
    ids, values = qk.top2(x)
    assert ids.tolist() == [sampling.argmax(row) for row in x]
    for choice, found, row in zip(ids.tolist(), values, x.tolist(), strict=True):
        expected = sorted(row, reverse=True)[:2] + [-torch.inf] * (n == 1)
        assert found.isnan().all() if choice < 0 else found.tolist() == expected


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_softmax(rng, n, temperature):
    check_softmax(rng, n, temperature)


def check_softmax(rng, n, temperature):
    x = torch.randn(3, n, generator=rng) * 3
    x[1, : n // 2] = -torch.inf
    out = qk.softmax(x, temperature)
    exact = torch.stack([sampling.probabilities(row, temperature) for row in x])
    assert torch.equal(out == 0, exact == 0)
    assert_within_budget(out, exact, (x / temperature).softmax(1))
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=0)


def test_softmax_of_masked_pieces(rng):
    x = torch.randn(2, 5 * PIECE + 3, generator=rng)
    x[0, : 3 * PIECE] = x[0, 4 * PIECE :] = -torch.inf
    x[1, 1:] = -torch.inf
    out = qk.softmax(x)
    torch.testing.assert_close(out, x.softmax(1), rtol=1e-6, atol=0)
    assert torch.equal(out == 0, x == -torch.inf)


@pytest.mark.parametrize("n", [3, 2 * PIECE])
def test_softmax_of_rows_without_a_distribution(n):
    checks.test_softmax_of_rows_without_a_distribution(None, n)


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e300])
def test_softmax_at_the_ends_of_the_temperatures(rng, temperature):
    x = torch.randn(4, 50, generator=rng) * 1e3
    expected = torch.nn.functional.one_hot(x.argmax(1), 50).float()
    torch.testing.assert_close(
        qk.softmax(x, temperature), expected if temperature < 1 else expected * 0 + 0.02
    )


@settings(max_examples=5)
@given(n=st.sampled_from(WIDTHS), m=st.integers(1, 2), seed=st.integers(0, 2**32), left_out=st.booleans())
def test_draw(n, m, seed, left_out):
    checks.test_draw.hypothesis.inner_test(None, n, m, seed, left_out)


@settings(max_examples=5)
@given(n=st.sampled_from(WIDTHS), m=st.integers(1, 2), seed=st.integers(0, 2**32))
def test_draw_residual(n, m, seed):
    checks.test_draw_residual.hypothesis.inner_test(None, n, m, seed)


@pytest.mark.parametrize("width", [PIECE, LINE])
def test_draws_near_the_ends_of_pieces(monkeypatch, width):
    monkeypatch.setattr(checks, "PIECE", width)
    checks.test_draw_near_the_ends_of_pieces(None)


@pytest.mark.parametrize("width", [PIECE, LINE])
def test_a_threshold_that_other_sums_cross(width):
    """1 + (2^-53 + 2^-53) exceeds 1, but added one after the other they do not."""
    weights = torch.zeros(1, 4 * width)
    weights[0, 0], weights[0, 2 * width], weights[0, 3 * width] = 1.0, 2.0**-53, 2.0**-53
    assert qk.draw(weights, checks.uniforms(checks.LAST)).tolist() == [3 * width]


def test_what_has_no_mass():
    checks.test_what_has_no_mass(None)
    # one number that is none, in a piece that is not drawn from
    weights = torch.ones(3, 3 * PIECE)
    weights[0, -1], weights[1, PIECE] = torch.nan, torch.inf
    assert qk.draw(weights, checks.uniforms(0.1, 0.1, 0.1)).tolist() == [-1, -1, 4]
    numbers, none = checks.uniforms(0.1), torch.tensor([-1])
    assert qk.draw_residual(weights[:1], weights[2:], numbers, q_rows=none).tolist() == [-1]


def sparse(rng: torch.Generator, rows: int, n: int) -> Tensor:
    """Weights of many magnitudes, most of them 0, one at least above it in each row."""
    weights = torch.exp(8 * torch.randn(rows, n, generator=rng))
    weights *= torch.rand(rows, n, generator=rng) < 0.2
    weights[:, PIECE + 3] += 1e-7
    return weights


@pytest.mark.parametrize("number", [0.0, checks.LAST])
def test_no_index_without_weight_is_drawn(rng, number):
    check_weight(rng, number)


def check_weight(rng, number):
    weights, numbers = sparse(rng, 8, 2 * PIECE), torch.full((8,), number, dtype=torch.float64)
    less = weights * (torch.rand(weights.shape, generator=rng) < 0.9)
    less[:, PIECE + 3] = 0
    assert (weights.gather(1, qk.draw(weights, numbers)[:, None]) > 0).all()
    left = qk.draw_residual(weights, less, numbers)
    assert ((weights - less).gather(1, left[:, None]) > 0).all()


def test_draws_equal_those_of_torch(rng):
    """Sums of many magnitudes are rounded in other orders: numbers are far from where that would show."""
    p, q = (sparse(rng, 13, 3 * PIECE + 5).clamp(max=1e3)[1:] for _ in range(2))
    # in front of the first row, where -1 would be, there is something else
    q._base[0] = 1e6
    number = torch.rand(12, dtype=torch.float64, generator=rng)
    rows, others = (torch.randint(0, 12, (12,), generator=rng) for _ in range(2))
    others[3] = -1
    assert torch.equal(qk.draw(p, number, rows=rows), torch_draw.draw(p, number, rows, None))
    found = qk.draw_residual(p, q, number, p_rows=rows, q_rows=others)
    assert torch.equal(found, torch_draw_residual.draw_residual(p, q, number, rows, others))


ROWWISE = {
    "argmax": lambda x, number: qk.argmax(x),
    "softmax": lambda x, number: qk.softmax(x, 0.8),
    "draw": lambda x, number: qk.draw(x.exp(), number),
    "draw_residual": lambda x, number: qk.draw_residual(x.exp(), x.exp().roll(1, 1), number),
}


@pytest.mark.parametrize("op", ROWWISE)
def test_rows_do_not_depend_on_their_company(rng, op):
    check_rows(ROWWISE[op], rng)


def check_rows(op, rng):
    x, number = torch.randn(5, 3 * PIECE + 5, generator=rng), torch.rand(5, generator=rng).double()
    whole = op(x, number)
    loud = x.clone()
    loud[1::2] *= 10
    assert same_bits(op(loud, number)[::2], whole[::2])
    for row in (0, 2, 4):
        assert same_bits(op(x[row : row + 1], number[row : row + 1]), whole[row : row + 1])


@triton.jit
def _running(out, x, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, _pieces.running_sums(tl.load(x + at)))


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_running_sums_are_added_as_a_tree(rng, n):
    x = torch.exp(8 * torch.randn(n, generator=rng)).double() * (torch.rand(n, generator=rng) < 0.8)
    out = torch.empty_like(x)
    _running[(1,)](out, x, n)
    assert same_bits(out, tree_sums(x))
    assert (out.diff() >= 0).all()
    assert (out.diff()[x[1:] == 0] == 0).all()
    # what the comparison is for: one by one they are other numbers
    assert n < 64 or not same_bits(out, x.cumsum(0))


def tree_sums(x: Tensor) -> Tensor:
    """Sums of x[0..i], those behind counting as 0, neighbours first."""
    sums = []
    for place in range(len(x)):
        level = torch.where(torch.arange(len(x)) <= place, x, 0.0)
        while len(level) > 1:
            level = level[::2] + level[1::2]
        sums.append(level[0])
    return torch.stack(sums)


def _of_all_rows(right, x, temperature):
    return right(x - x.amax(), temperature * x.amax().item())


MUTANTS = {
    "argmax": lambda right, x: x.shape[1] - 1 - right(x.flip(1)),
    "top2": lambda right, x: (right(x)[0], right(x)[1].flip(1)),
    "softmax": lambda right, x, temperature: right(x, 1.0),
    "draw": lambda right, weights, number, rows, without: right(weights, number, rows, None),
    "draw_residual": lambda right, p, q, number, p_rows, q_rows: right(p, q * 0, number, p_rows, q_rows),
}


@pytest.mark.parametrize("op", MUTANTS)
def test_the_checks_catch(mutate, rng, op):
    tests = {
        "argmax": lambda: check_argmax(rng, 7),
        "top2": lambda: check_top2(rng, 7),
        "softmax": lambda: check_softmax(rng, PIECE + 1, 0.3),
        "draw": lambda: checks.test_draw.hypothesis.inner_test(None, 7, 4, 1, True),
        "draw_residual": lambda: checks.test_draw_residual.hypothesis.inner_test(None, 37, 4, 4),
    }
    mutate(op, MUTANTS[op])
    with pytest.raises(AssertionError):
        tests[op]()


def test_a_neighbour_that_has_no_weight_is_noticed(mutate, rng):
    mutate("draw", lambda right, weights, *rest: (right(weights, *rest) + 1) % weights.shape[1])
    with pytest.raises(AssertionError):
        check_weight(rng, 0.0)


def test_a_highest_value_of_all_rows_is_noticed(mutate, rng):
    mutate("softmax", _of_all_rows)
    with pytest.raises(AssertionError):
        check_rows(ROWWISE["softmax"], rng)
