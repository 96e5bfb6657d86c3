"""Ops that round, on whatever shapes and magnitudes: within the bounds of rounding around the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import qspec_kernels as qk
from reference.linear import linear as exact_linear
from reference.rmsnorm import rmsnorm as exact_rmsnorm
from reference.rope import rope as exact_rope
from reference.rope_cache_write import rope_cache_write as exact_rope_cache_write
from reference.silu_mul import silu_mul as exact_silu_mul
from tests.kernels.cases import FLOATS, WEIGHTS, assert_within_bound, linear_bound, quantized, same_bits

pytestmark = pytest.mark.usefixtures("poisoned")

EPS = torch.finfo(torch.float32).eps

SEEDS = st.integers(0, 2**32)
DTYPES = st.sampled_from(FLOATS)
MAGNITUDES = st.sampled_from([1e-12, 1.0, 1e6])
# rows, features and outputs, across the borders of vectors, tiles and groups
LINEARS = st.tuples(st.sampled_from([1, 2, 3, 5, 7, 9, 17]), st.integers(1, 300), st.integers(1, 40))
FEW = settings(max_examples=25)


@FEW
@given(
    shape=LINEARS, dtype=DTYPES, weight_dtype=DTYPES, biased=st.booleans(), magnitude=MAGNITUDES, seed=SEEDS
)
def test_dense(backend, shape, dtype, weight_dtype, biased, magnitude, seed):
    check_dense(shape, dtype, weight_dtype, biased, magnitude, seed)


def check_dense(shape, dtype, weight_dtype, biased, magnitude, seed):
    (m, k, n), rng = shape, torch.Generator().manual_seed(seed)
    x = (torch.randn(m, k, generator=rng) * magnitude).to(dtype)
    weight = torch.randn(n, k, generator=rng).to(weight_dtype)
    bias = torch.randn(n, generator=rng) if biased else None
    # a bfloat16 weight rounds its input
    read = x.to(weight_dtype) if weight_dtype == torch.bfloat16 else x
    exact, bound = exact_linear(read, weight, bias), linear_bound(read, weight.double(), bias)
    assert_within_bound(qk.linear(x, weight, bias), exact, bound)


@FEW
@given(
    shape=LINEARS,
    dtype=DTYPES,
    case=st.sampled_from(WEIGHTS),
    biased=st.booleans(),
    magnitude=MAGNITUDES,
    seed=SEEDS,
)
def test_weight_only(backend, shape, dtype, case, biased, magnitude, seed):
    check_weight_only(shape, dtype, case, biased, magnitude, seed)


def check_weight_only(shape, dtype, case, biased, magnitude, seed):
    (m, k, n), rng = shape, torch.Generator().manual_seed(seed)
    x = (torch.randn(m, k, generator=rng) * magnitude).to(dtype)
    weight = quantized(case[0], torch.randn(n, k, generator=rng), case[1])
    bias = torch.randn(n, generator=rng) if biased else None
    read = x.bfloat16()
    exact, bound = exact_linear(read, weight.values, bias), linear_bound(read, weight.values, bias)
    assert_within_bound(qk.linear(x, weight.packed, bias), exact, bound)


@FEW
@given(m=st.integers(1, 5), k=st.integers(1, 300), dtype=DTYPES, magnitude=MAGNITUDES, seed=SEEDS)
def test_rmsnorm(backend, m, k, dtype, magnitude, seed):
    check_rmsnorm(m, k, dtype, magnitude, seed)


def check_rmsnorm(m, k, dtype, magnitude, seed):
    rng = torch.Generator().manual_seed(seed)
    x = (torch.randn(m, k, generator=rng) * magnitude).to(dtype)
    gain = torch.randn(k, generator=rng)
    exact = exact_rmsnorm(x, gain, 1e-5)
    assert_within_bound(qk.rmsnorm(x, gain, 1e-5), exact, (k + 8) * EPS * exact.abs())


@FEW
@given(m=st.integers(1, 5), f=st.integers(1, 150), dtype=DTYPES, magnitude=MAGNITUDES, seed=SEEDS)
def test_silu_mul(backend, m, f, dtype, magnitude, seed):
    check_silu_mul(m, f, dtype, magnitude, seed)


def check_silu_mul(m, f, dtype, magnitude, seed):
    rng = torch.Generator().manual_seed(seed)
    gate_up = (torch.randn(m, 2 * f, generator=rng) * magnitude).to(dtype)
    exact = exact_silu_mul(gate_up)
    # beyond the largest power of e a gate is 0
    bound = 16 * EPS * exact.abs() + 1e-35 * gate_up[:, f:].double().abs()
    assert_within_bound(qk.silu_mul(gate_up), exact, bound)


def pairs(exact: Tensor) -> Tensor:
    """Of each element [..., D] the magnitude that turning its pair had to do with."""
    return 1.5 * (exact.abs() + exact.roll(exact.shape[-1] // 2, -1).abs())


@FEW
@given(
    tokens=st.integers(1, 5),
    heads=st.integers(1, 3),
    half=st.integers(1, 70),
    dtype=DTYPES,
    scaling=st.sampled_from([1.0, 1.3]),
    seed=SEEDS,
)
def test_rope(backend, tokens, heads, half, dtype, scaling, seed):
    check_rope(tokens, heads, half, dtype, scaling, seed)


def check_rope(tokens, heads, half, dtype, scaling, seed):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, heads, 2 * half, generator=rng).to(dtype)
    positions = torch.randint(0, 100_000, (tokens,), generator=rng)
    inv_freq = torch.rand(half, generator=rng)
    exact = exact_rope(x, positions, inv_freq, scaling)
    assert_within_bound(qk.rope(x, positions, inv_freq, scaling), exact, 16 * EPS * pairs(exact))


@FEW
@given(
    heads=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    half=st.integers(1, 40),
    dtype=DTYPES,
    cache_dtype=DTYPES,
    normed=st.booleans(),
    seed=SEEDS,
)
def test_rope_cache_write(backend, heads, half, dtype, cache_dtype, normed, seed):
    check_rope_cache_write(heads, half, dtype, cache_dtype, normed, seed)


def check_rope_cache_write(heads, half, dtype, cache_dtype, normed, seed):
    (q_heads, kv_heads), d, rng = heads, 2 * half, torch.Generator().manual_seed(seed)
    slots = torch.randperm(3 * 20, generator=rng)[:7]
    rows, positions = slots // 20, slots % 20
    qkv = torch.randn(len(slots), (q_heads + 2 * kv_heads) * d, generator=rng).to(dtype)
    k_cache, v_cache = (torch.full((3, kv_heads, 20, d), 1e30).to(cache_dtype) for _ in range(2))
    inv_freq, gains = torch.rand(half, generator=rng), torch.rand(2, d, generator=rng)
    q, keys, values = exact_rope_cache_write(
        qkv, k_cache, v_cache, rows, positions, inv_freq, 1.2, (gains[0], gains[1]) if normed else None, 1e-5
    )
    norm = qk.HeadNorm(gains[0], gains[1], 1e-5) if normed else None
    rotary = qk.RotaryEmbedding(inv_freq, 1.2)
    got = qk.rope_cache_write(qkv, k_cache, v_cache, rows, positions, rotary, norm)
    # sums and angles in float32, two roundings to qkv's dtype
    share = (d + 24) * EPS + 2 * torch.finfo(dtype).eps
    assert_within_bound(got, q, share * pairs(q))
    assert_within_bound(k_cache, keys, share * pairs(keys))
    assert same_bits(v_cache, values.to(cache_dtype))


def _without_the_last_feature(right, x, *rest):
    x = x.clone()
    x[:, -1] = 0
    return right(x, *rest)


@pytest.mark.parametrize(
    ("op", "wrong", "check", "arguments"),
    [
        ("linear_fp32", _without_the_last_feature, check_dense,
         ((3, 40, 5), torch.float32, torch.float32, True, 1.0, 0)),
        # rounds what it should not, and does not round what it should
        ("linear_fp32", lambda right, x, *rest: right(x.bfloat16().float(), *rest), check_dense,
         ((3, 40, 5), torch.float32, torch.float32, True, 1.0, 0)),
        ("linear_w4a16", lambda right, x, *rest: right(x.double(), *rest).float(), check_weight_only,
         ((3, 40, 5), torch.float32, ("int4", 32), True, 1.0, 0)),
        ("rmsnorm", lambda right, x, weight, eps: right(x, weight, 0.0), check_rmsnorm,
         (3, 40, torch.float32, 1.0, 0)),
        ("silu_mul", lambda right, x: right(x * 1.0001), check_silu_mul, (3, 40, torch.float32, 1.0, 0)),
        ("rope", lambda right, x, positions, *rest: right(x, positions + 1, *rest), check_rope,
         (3, 2, 20, torch.float32, 1.3, 0)),
        # without what precedes the turn
        ("rope_cache_write", lambda right, *call: right(*call[:7], None, None, 0.0), check_rope_cache_write,
         ((3, 2), 20, torch.float32, torch.float32, True, 0)),
    ],
)  # fmt: skip
def test_bounds_catch(mutate, op, wrong, check, arguments):
    mutate(op, wrong)
    with pytest.raises(AssertionError, match="exceeds the bound"):
        check(*arguments)
