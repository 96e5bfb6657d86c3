"""Choices and draws: against the reference, at the borders of pieces, by rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import qspec_kernels as qk
from reference import accept, sampling
from tests.kernels.cases import assert_within_budget, same_bits

pytestmark = pytest.mark.usefixtures("poisoned", "threads")

# values of a piece that one thread takes
PIECE = 2048
WIDTHS = [1, 7, 16, 100, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5]
# the largest number below 1 that is drawn with
LAST = 1 - 2.0**-53


def uniforms(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def grid(rng: torch.Generator, *shape: int) -> Tensor:
    """Multiples of 1/64 below 1, half of them 0: sums of them are exact in any order."""
    values = torch.randint(0, 64, shape, generator=rng).float() / 64
    return values * torch.randint(0, 2, shape, generator=rng)


@pytest.mark.parametrize("n", WIDTHS)
def test_argmax(backend, rng, n):
    x = torch.randint(0, 40, (9, n), generator=rng).float() - 100
    x[1] = -torch.inf
    x[2, n // 2] = torch.nan
    x[3, -1] = torch.inf
    x[4, : n - 1] = -torch.inf
    x[5, -1], x[6, -1] = -torch.nan, -1.0
    found = qk.argmax(x)
    assert found.tolist() == [sampling.argmax(row) for row in x]
    assert found[[1, 2, 3, 5]].tolist() == [-1] * 4
    assert qk.argmax(x.double()).tolist() == found.tolist()
    assert qk.argmax(x.view(3, 3, n)).shape == (3, 3)


def test_argmax_takes_the_lowest_of_equals(backend):
    x = torch.zeros(1, 3 * PIECE)
    for places in ([3 * PIECE - 1], [PIECE, PIECE + 1], [PIECE - 1, PIECE, 2 * PIECE], [0, 5]):
        x.zero_()
        x[0, places] = 1.0
        assert qk.argmax(x).tolist() == places[:1]
    assert qk.argmax(torch.tensor([[-0.0, 0.0]])).tolist() == [0]


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_softmax(backend, rng, n, temperature):
    check_softmax(rng, n, temperature)


def check_softmax(rng, n, temperature):
    x = torch.randn(5, n, generator=rng) * 3
    x[1, : n // 2] = -torch.inf
    out = qk.softmax(x, temperature)
    exact = torch.stack([sampling.probabilities(row, temperature) for row in x])
    assert out.dtype == torch.float32
    assert torch.equal(out == 0, exact == 0)
    assert_within_budget(out, exact, (x / temperature).softmax(1))
    torch.testing.assert_close(out.double(), exact, rtol=2e-5, atol=0)
    torch.testing.assert_close(qk.softmax(x.double(), temperature), exact)


@pytest.mark.parametrize("n", [3, 2 * PIECE])
def test_softmax_of_rows_without_a_distribution(backend, n):
    x = torch.zeros(5, n)
    x[1] = -torch.inf
    x[2, 1], x[3, n - 1] = torch.nan, torch.inf
    for row, expected in zip(qk.softmax(x), [False, True, True, True, False], strict=True):
        assert row.isnan().all() == row.isnan().any() == expected


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e300])
def test_softmax_at_the_ends_of_the_temperatures(backend, rng, temperature):
    x = torch.randn(4, 50, generator=rng) * 1e3
    for logits in (x, x.double()):
        out = qk.softmax(logits, temperature)
        if temperature < 1:
            assert torch.equal(out, torch.nn.functional.one_hot(x.argmax(1), 50).to(out.dtype))
        else:
            torch.testing.assert_close(out, torch.full_like(out, 1 / 50))


@given(n=st.sampled_from(WIDTHS), m=st.integers(1, 4), seed=st.integers(0, 2**32), left_out=st.booleans())
def test_draw(backend, n, m, seed, left_out):
    rng = torch.Generator().manual_seed(seed)
    weights = grid(rng, 3, n)
    weights[:, torch.randint(0, n, (), generator=rng)] = 0.5
    rows = torch.randint(0, 3, (m,), generator=rng)
    # odd multiples of a number that no weight is a multiple of: never on the edge between two indices
    number = (2 * torch.randint(0, 2**20, (m,), generator=rng) + 1).double() / 2**21
    without = torch.randint(-1, n, (m,), generator=rng) if left_out else None
    found = qk.draw(weights, number, rows=rows, without=without)
    for i in range(m):
        row = weights[rows[i]].double()
        if left_out and without[i] >= 0 and row.sum() > row[without[i]]:
            row[without[i]] = 0
        assert int(found[i]) == sampling.draw(row, float(number[i]))
    plain = qk.draw(weights, number[:1].expand(3).contiguous())
    assert plain.tolist() == [sampling.draw(row, float(number[0])) for row in weights]


@given(n=st.sampled_from(WIDTHS), m=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_draw_residual(backend, n, m, seed):
    rng = torch.Generator().manual_seed(seed)
    p, q = grid(rng, 3, n), grid(rng, 4, n)
    p[:, torch.randint(0, n, (), generator=rng)] = 0.5
    p_rows = torch.randint(0, 3, (m,), generator=rng)
    q_rows = torch.randint(-1, 4, (m,), generator=rng)
    number = (2 * torch.randint(0, 2**20, (m,), generator=rng) + 1).double() / 2**21
    found = qk.draw_residual(p, q, number, p_rows=p_rows, q_rows=q_rows)
    for i in range(m):
        row = p[p_rows[i]].double()
        if q_rows[i] >= 0:
            left = (row - q[q_rows[i]]).clamp(min=0)
            row = left if left.sum() > 0 else row
        assert int(found[i]) == sampling.draw(row, float(number[i]))
    plain = qk.draw_residual(p, q[:3], number[:1].expand(3).contiguous())
    assert (
        plain.tolist()
        == qk.draw_residual(
            p, q, number[:1].expand(3).contiguous(), p_rows=torch.arange(3), q_rows=torch.arange(3)
        ).tolist()
    )


def test_the_residual_is_that_of_the_reference(backend, rng):
    p, q = (torch.randn(1, 40, generator=rng).softmax(1) for _ in range(2))
    expected = accept.residual(p[0].double(), q[0].double())
    number = torch.rand(20_000, generator=rng, dtype=torch.float64)
    zeros = torch.zeros(len(number), dtype=torch.int64)
    found = qk.draw_residual(p, q, number, p_rows=zeros, q_rows=zeros).bincount(minlength=40) / len(number)
    assert (found.double() - expected).abs().max() < 0.02
    assert torch.equal(found > 0, (expected > 0) & (found > 0))


def test_draw_near_the_ends_of_pieces(backend):
    """Weight in one place only: found whatever the number; in two: the number's bound is exact."""
    for place in (0, PIECE - 1, PIECE, 2 * PIECE - 1, 3 * PIECE):
        weights = torch.zeros(1, 3 * PIECE + 1)
        weights[0, place] = 1e-30
        for number in (0.0, 2.0**-53, 0.5, LAST):
            assert qk.draw(weights, uniforms(number)).tolist() == [place]
    weights = torch.zeros(1, 3 * PIECE)
    weights[0, PIECE - 1], weights[0, 2 * PIECE] = 1.0, 3.0
    for number, expected in ((0.0, PIECE - 1), (0.25 - 2**-54, PIECE - 1), (0.25, 2 * PIECE)):
        assert qk.draw(weights, uniforms(number)).tolist() == [expected]


def test_no_index_without_weight_is_drawn(backend, rng):
    weights = torch.rand(400, 3 * PIECE, generator=rng)
    weights *= torch.rand(400, 3 * PIECE, generator=rng) < 0.002
    weights[:, PIECE + 3] += 1e-7
    less = weights * (torch.rand(weights.shape, generator=rng) < 0.9)
    less[:, PIECE + 3] = 0
    for number in (0.0, 2.0**-53, 0.5, LAST):
        numbers = torch.full((400,), number, dtype=torch.float64)
        ids = qk.draw(weights, numbers)
        assert (weights.gather(1, ids[:, None]) > 0).all()
        left = qk.draw_residual(weights, less, numbers)
        assert ((weights - less).gather(1, left[:, None]) > 0).all()


def test_what_has_no_mass(backend):
    nothing, some = torch.zeros(1, 5), torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]])
    number = uniforms(0.5)
    for bad in (nothing, torch.full((1, 5), torch.nan), torch.full((1, 5), torch.inf)):
        assert qk.draw(bad, number).tolist() == [-1]
        assert qk.draw_residual(bad, nothing, number).tolist() == [-1]
    # nothing else has weight: it counts after all; p and q are equal: p alone
    assert qk.draw(some, number, without=torch.tensor([2])).tolist() == [2]
    assert qk.draw_residual(some, some, number).tolist() == [2]
    assert qk.draw(torch.zeros(0, 5), uniforms()).shape == (0,)


def test_rows_depend_neither_on_each_other_nor_on_threads(backend, rng):
    n, m = 3 * PIECE + 5, 7
    x, number = torch.randn(m, n, generator=rng) * 2, torch.rand(m, generator=rng, dtype=torch.float64)
    torch.set_num_threads(1)
    ids, two, p = qk.argmax(x), qk.top2(x), qk.softmax(x, 0.8)
    q = qk.softmax(x.roll(1, 1), 0.8)
    drawn, left = qk.draw(p, number), qk.draw_residual(p, q, number)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for rows in (slice(0, m), slice(0, 1), slice(4, 5), slice(2, 7)):
            assert same_bits(qk.argmax(x[rows]), ids[rows])
            assert all(same_bits(a, b[rows]) for a, b in zip(qk.top2(x[rows]), two, strict=True))
            assert same_bits(qk.softmax(x[rows], 0.8), p[rows])
            assert same_bits(qk.draw(p[rows], number[rows]), drawn[rows])
            assert same_bits(qk.draw_residual(p[rows], q[rows], number[rows]), left[rows])


def test_they_are_recorded(rng):
    if qk.isa() == "torch":
        pytest.skip("there are no native kernels here")
    workspace, number = qk.Workspace(), uniforms(0.3, 0.6)
    x = workspace.empty((2, 100))
    x[:] = torch.randn(2, 100, generator=rng)
    with workspace.record() as program:
        best, drawn = qk.argmax(x), qk.draw(qk.softmax(x, 0.5), number)
    assert len(program) == 3
    x[:] = torch.randn(2, 100, generator=rng)
    program.replay()
    assert same_bits(best, qk.argmax(x))
    assert same_bits(drawn, qk.draw(qk.softmax(x, 0.5), number))


def test_a_softmax_without_its_temperature_is_noticed(mutate, rng):
    mutate("softmax", lambda right, x, temperature: right(x, 1.0))
    with pytest.raises(AssertionError):
        check_softmax(rng, 100, 0.3)


def test_a_draw_that_does_not_leave_out_is_noticed(mutate):
    mutate("draw", lambda right, weights, number, rows, without: right(weights, number, rows, None))
    with pytest.raises(AssertionError):
        test_draw.hypothesis.inner_test("torch", 7, 4, 1, True)


def test_a_residual_that_is_not_cut_is_noticed(mutate):
    def wrong(right, p, q, number, p_rows, q_rows):
        return right((p - q[: len(p)]).abs(), q * 0, number, p_rows, q_rows)

    mutate("draw_residual", wrong)
    with pytest.raises(AssertionError):
        test_draw_residual.hypothesis.inner_test("torch", 100, 4, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, u: qk.argmax(w.bfloat16()), "logits is torch.bfloat16; expected float32 or float64"),
        (lambda w, u: qk.top2(w.half()), "logits is torch.float16; expected float32 or float64"),
        (lambda w, u: qk.softmax(w, 0.0), "temperature is 0.0; expected a finite number above 0"),
        (lambda w, u: qk.softmax(w.half()), "logits is torch.float16"),
        (lambda w, u: qk.draw(w, u.float()), "uniforms is torch.float32; expected float64"),
        (lambda w, u: qk.draw(w[0], u), r"weights has shape \[5\]; expected \[rows, indices\]"),
        (lambda w, u: qk.draw(w, u[:1]), r"uniforms has shape \[1\]; expected \[2\]"),
        (lambda w, u: qk.draw(w, u, rows=torch.tensor([0, 2])), r"rows holds 2; expected 0..1"),
        (lambda w, u: qk.draw(w, u, rows=torch.tensor([0, -1])), r"rows holds -1; expected 0..1"),
        (lambda w, u: qk.draw(w, u, rows=torch.tensor([0])), r"rows has shape \[1\]; expected \[2\]"),
        (lambda w, u: qk.draw(w, u, without=torch.tensor([0, 5])), r"without holds 5; expected -1..4"),
        (lambda w, u: qk.draw(w, u, rows=torch.tensor([0, 1]).int()), "rows is torch.int32; expected int64"),
        (lambda w, u: qk.draw_residual(w, w[:, :4], u), "p has 5 indices and q has 4"),
        (lambda w, u: qk.draw_residual(w, w, u, q_rows=torch.tensor([0, -2])), "q_rows holds -2; .* -1..1"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("untyped")
def test_bad_input(call, message):
    with pytest.raises(qk.UsageError, match=message) as error:
        call(torch.ones(2, 5), uniforms(0.1, 0.2))
    assert error.value.hint
