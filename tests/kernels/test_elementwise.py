"""`hadamard`, `rmsnorm`, `rope`, `silu_mul` against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import qspec_kernels as qk
from qspec_kernels.hadamard_matrix import hadamard_matrix
from reference.hadamard import hadamard as exact_hadamard
from reference.rmsnorm import rmsnorm as exact_rmsnorm
from reference.rope import rope as exact_rope
from reference.silu_mul import silu_mul as exact_silu_mul
from tests.kernels.cases import FLOATS, assert_within_budget, same_bits

pytestmark = pytest.mark.usefixtures("poisoned")

# orders 12, 20, 28, 36, 44, 52, 76 and 172 times powers of two; 2, 4 and 8 are below a vector's width
WIDTHS = [1, 2, 4, 8, 64, 512, 12, 24, 40, 112, 36, 176, 52, 608, 344, 1024]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_hadamard(backend, rng, width, dtype):
    check_hadamard(rng, width, dtype)


def check_hadamard(rng, width, dtype):
    x, matrix = torch.randn(5, width, generator=rng).to(dtype), hadamard_matrix(width)
    for transpose in (False, True):
        out = qk.hadamard(x, transpose=transpose)
        assert out.dtype == dtype
        turned = (matrix.T if transpose else matrix).float()
        # term by term: a BLAS is free to add in a better order, and does for some shapes on some processors
        low = x.new_zeros(x.shape, dtype=torch.float32)
        for value, column in zip(x.float().unbind(1), turned.unbind(1), strict=True):
            low += value[:, None] * column
        assert_within_budget(out, exact_hadamard(x, matrix, transpose), (low * width**-0.5).to(dtype))


@given(
    width=st.sampled_from(WIDTHS), blocks=st.integers(1, 3), m=st.integers(1, 9), seed=st.integers(0, 2**32)
)
def test_hadamard_is_orthonormal(backend, width, blocks, m, seed):
    x = torch.randn(m, width * blocks, generator=torch.Generator().manual_seed(seed))
    y = qk.hadamard(x, block=width)
    exact = exact_hadamard(x, hadamard_matrix(width))
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(qk.hadamard(y, block=width, transpose=True), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1), rtol=1e-5, atol=1e-5)
    assert same_bits(y[:, :width], qk.hadamard(x[:, :width].contiguous()))


@pytest.mark.parametrize("width", WIDTHS)
def test_hadamard_of_units_is_the_matrix(width):
    x = torch.eye(width, dtype=torch.float64)
    matrix = hadamard_matrix(width).double()
    torch.testing.assert_close(qk.hadamard(x) * width**0.5, matrix.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(qk.hadamard(x, transpose=True) * width**0.5, matrix, rtol=1e-12, atol=1e-12)


def test_hadamard_catches_a_matrix_taken_for_symmetric(mutate, rng):
    mutate("hadamard", lambda right, x, base, transpose, d: right(x, base.t().contiguous(), transpose, d))
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_hadamard(rng, 40, torch.float32)


def test_hadamard_catches_the_factors_exchanged(mutate, rng):
    def wrong(right, x, base, transpose, diagonal):
        swapped = x.view(len(x), -1, len(base)).transpose(1, 2).reshape(x.shape)
        return right(swapped, base, transpose, diagonal)

    mutate("hadamard", wrong)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_hadamard(rng, 24, torch.float32)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 64), (2, 2048), (1, 40_000)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rmsnorm(backend, rng, shape, dtype):
    check_rmsnorm(rng, shape, dtype)


def check_rmsnorm(rng, shape, dtype):
    x = (torch.randn(shape, generator=rng) * 3).to(dtype)
    weight = torch.rand(shape[1], generator=rng) + 0.5
    for magnitude, gain in ((1.0, weight), (1e-3, weight.bfloat16())):
        scaled = x * magnitude
        out = qk.rmsnorm(scaled, gain, 1e-5)
        assert out.dtype == dtype
        low = F.rms_norm(scaled.float(), scaled.shape[1:], gain.float(), 1e-5).to(dtype)
        assert_within_budget(out, exact_rmsnorm(scaled, gain, 1e-5), low)


def test_rmsnorm_of_zeros(backend):
    assert qk.rmsnorm(torch.zeros(2, 16), torch.ones(16), 1e-6).abs().sum() == 0


@pytest.mark.parametrize("change", [lambda eps: 0.0, lambda eps: eps * 10])
def test_rmsnorm_catches_another_epsilon(mutate, rng, change):
    mutate("rmsnorm", lambda right, x, weight, eps: right(x, weight, change(eps)))
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_rmsnorm(rng, (5, 64), torch.float32)


@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (5, 128), (2, 4096)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_silu_mul(backend, rng, shape, dtype):
    check_silu_mul(rng, shape, dtype)


def check_silu_mul(rng, shape, dtype):
    gate_up = (torch.randn(shape, generator=rng) * 4).to(dtype)
    out = qk.silu_mul(gate_up)
    assert out.dtype == dtype
    gate, up = gate_up.float().chunk(2, 1)
    assert_within_budget(out, exact_silu_mul(gate_up), (F.silu(gate) * up).to(dtype))


def test_silu_mul_of_extremes(backend):
    gate_up = torch.tensor([[-1e4, 1e4, -200.0, 0.0, 2.0, 2.0, 2.0, 2.0]])
    assert qk.silu_mul(gate_up).tolist() == [[0.0, 2e4, 0.0, 0.0]]


def test_silu_mul_catches_halves_exchanged(mutate, rng):
    mutate("silu_mul", lambda right, gate_up: right(gate_up.roll(gate_up.shape[1] // 2, 1)))
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_silu_mul(rng, (5, 128), torch.float32)


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 2, 6), (7, 3, 64), (2, 5, 128)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scaling", [1.0, 1.3])
def test_rope(backend, rng, shape, dtype, scaling):
    check_rope(rng, shape, dtype, scaling)


def check_rope(rng, shape, dtype, scaling):
    x = torch.randn(shape, generator=rng).to(dtype)
    positions = torch.randint(0, 100_000, shape[:1], generator=rng)
    inv_freq = 1e4 ** -(torch.arange(shape[2] // 2) / max(1, shape[2] // 2))
    exact = exact_rope(x, positions, inv_freq, scaling)
    angles = (positions.float()[:, None] * inv_freq)[:, None]
    half = torch.cat((-x[..., shape[2] // 2 :], x[..., : shape[2] // 2]), 2).float()
    cos, sin = (torch.cat((f, f), 2) * scaling for f in (angles.cos(), angles.sin()))
    for some_positions in (positions, positions.int()):
        out = qk.rope(x, some_positions, inv_freq, scaling)
        assert out.dtype == dtype
        assert_within_budget(out, exact, (x.float() * cos + half * sin).to(dtype))


def _interleaved(right, x, positions, inv_freq, scaling):
    halves = torch.cat((x[..., 0::2], x[..., 1::2]), 2)
    out = right(halves.contiguous(), positions, inv_freq, scaling)
    return torch.stack(out.chunk(2, 2), 3).flatten(2)


def _next_position(right, x, positions, *rest):
    return right(x, positions + 1, *rest)


@pytest.mark.parametrize("wrong", [_interleaved, _next_position])
def test_rope_catches(mutate, rng, wrong):
    mutate("rope", wrong)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_rope(rng, (7, 3, 64), torch.float32, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: qk.hadamard(x, block=5), "block is 5; expected a divisor of the width, 12"),
        (lambda x: qk.hadamard(x[:, :7]), "7"),
        (lambda x: qk.hadamard(x.half()), "x is torch.float16"),
        (lambda x: qk.rmsnorm(x, torch.ones(11)), "weight has shape .11.; expected .12."),
        (lambda x: qk.silu_mul(x[:, :5]), "gate_up has 5 features; expected an even number"),
        (lambda x: qk.rope(x, torch.arange(2), torch.ones(6)), "expected .tokens, heads, d."),
        (
            lambda x: qk.rope(x[:, None], torch.zeros(2), torch.ones(6)),
            "positions is torch.float32; expected int32 or int64",
        ),
        (
            lambda x: qk.rope(x[:, None], torch.arange(3), torch.ones(6)),
            "positions has shape .3.; expected .2.",
        ),
        (
            lambda x: qk.rope(x[:, None], torch.arange(2), torch.ones(5)),
            "inv_freq has shape .5.; expected .6.",
        ),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_input(call, message):
    with pytest.raises(qk.UsageError, match=message) as error:
        call(torch.ones(2, 12))
    assert error.value.hint
