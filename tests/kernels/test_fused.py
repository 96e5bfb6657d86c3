"""Fused ops equal the composition of their parts bit for bit, the roundings in between included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qspec_kernels as qk
from reference.embedding import embedding as exact_embedding
from tests.kernels.cases import FLOATS, WEIGHTS, quantized, same_bits

pytestmark = pytest.mark.usefixtures("poisoned")

QUANTIZATIONS = [{"bits": 8}, {"bits": 4, "group_size": 32}, {"bits": 4, "group_size": 7, "clip": 0.8}]


def same_activation(left: qk.QuantizedActivation, right: qk.QuantizedActivation) -> bool:
    """Equal codes, scales and groups."""
    return (
        torch.equal(left.codes, right.codes)
        and same_bits(left.scales, right.scales)
        and (left.bits, left.group_size) == (right.bits, right.group_size)
    )


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=str)
@pytest.mark.parametrize("width", [1, 16, 40, 1000])
def test_rmsnorm_quantize_act(backend, rng, dtype, quantization, width):
    x, gain = torch.randn(5, width, generator=rng).to(dtype), torch.rand(width, generator=rng)
    x[2] = 0
    fused = qk.rmsnorm_quantize_act(x, gain, 1e-5, **quantization)
    assert same_activation(fused, qk.quantize_act(qk.rmsnorm(x, gain, 1e-5), **quantization))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=str)
@pytest.mark.parametrize("width", [1, 16, 40, 1000])
def test_silu_mul_quantize_act(backend, rng, dtype, quantization, width):
    x = torch.randn(5, 2 * width, generator=rng).to(dtype)
    x[2] = 0
    fused = qk.silu_mul_quantize_act(x, **quantization)
    assert same_activation(fused, qk.quantize_act(qk.silu_mul(x), **quantization))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=str)
@pytest.mark.parametrize(("width", "block"), [(1, 1), (12, None), (48, 24), (40, 4), (1024, 512)])
def test_silu_mul_hadamard_quantize_act(backend, rng, dtype, quantization, width, block):
    x = torch.randn(5, 2 * width, generator=rng).to(dtype)
    x[2] = 0
    for diagonal in (None, torch.randn(width, generator=rng)):
        fused = qk.silu_mul_hadamard_quantize_act(x, block=block, diagonal=diagonal, **quantization)
        turned = qk.hadamard(qk.silu_mul(x), block=block, diagonal=diagonal)
        assert same_activation(fused, qk.quantize_act(turned, **quantization))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("cache_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("d", [2, 32, 80])
def test_rope_cache_write(backend, rng, dtype, cache_dtype, normed, d):
    tokens, q_heads, heads = 9, 6, 2
    qkv = torch.randn(tokens, (q_heads + 2 * heads) * d, generator=rng).to(dtype)
    rows = torch.tensor([0, 0, 0, 2, 2, 1, 1, 1, 1], dtype=torch.int32)
    positions = torch.tensor([3, 4, 5, 0, 1, 7, 8, 9, 10], dtype=torch.int32)
    rotary = qk.RotaryEmbedding(torch.rand(d // 2, generator=rng), 1.25)
    norm = qk.HeadNorm(torch.rand(d, generator=rng), torch.rand(d, generator=rng), 1e-5) if normed else None
    caches = torch.full((4, 3, heads, 12, d), 1e30).to(cache_dtype)

    q = qk.rope_cache_write(qkv, caches[0], caches[1], rows, positions, rotary, norm)

    parts = qkv.view(tokens, -1, d).split((q_heads, heads, heads), 1)
    turned = []
    for part, gain in zip(parts[:2], (norm.q, norm.k) if norm else (None, None), strict=True):
        part = part if gain is None else qk.rmsnorm(part, gain, 1e-5)
        turned.append(qk.rope(part, positions, rotary.inv_freq, rotary.attention_scaling))
    qk.cache_write(caches[2], caches[3], turned[1], parts[2], rows, positions)
    assert same_bits(q, turned[0])
    assert same_bits(caches[0], caches[2])
    assert same_bits(caches[1], caches[3])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_residual_of_linears(backend, rng, dtype, biased):
    weight = torch.randn(37, 100, generator=rng)
    bias = torch.randn(37, generator=rng) if biased else None
    x, residual = (torch.randn(3, width, generator=rng).to(dtype) for width in (100, 37))
    for dense in (weight, weight.bfloat16()):
        assert same_bits(qk.linear(x, dense, bias, residual=residual), residual + qk.linear(x, dense, bias))
    for kind, group in WEIGHTS:
        packed = quantized(kind, weight, group).packed
        for act in ("a16", "a8", "a4")[: 3 if kind == "int4" else 2]:
            fused = qk.linear(x, packed, bias, act=act, residual=residual)
            assert same_bits(fused, residual + qk.linear(x, packed, bias, act=act)), (kind, group, act)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("block", [8, 12, 24])
def test_diagonal_of_hadamard(backend, rng, dtype, block):
    x = torch.randn(3, 24, generator=rng).to(dtype)
    diagonal = torch.randint(0, 2, (24,), generator=rng) * 4.0 - 2.0
    turned = qk.hadamard(x, block=block, diagonal=diagonal)
    assert same_bits(turned, qk.hadamard((x * diagonal).to(dtype), block=block))
    back = qk.hadamard(turned, block=block, transpose=True, diagonal=diagonal)
    plain = qk.hadamard(turned, block=block, transpose=True)
    assert same_bits(back, (plain * diagonal).to(dtype))


@given(data=st.data())
def test_embedding(backend, rng, data):
    entries, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))
    ids = torch.tensor(data.draw(st.lists(st.integers(0, entries - 1), max_size=20)), dtype=torch.int64)
    table = torch.randn(entries, width, generator=rng)
    for some_table in (table, table.bfloat16()):
        for rounded in (False, True):
            exact = exact_embedding(some_table, ids, rounded)
            assert same_bits(qk.embedding(some_table, ids, rounded=rounded), exact.float())
            assert same_bits(qk.embedding(some_table, ids, rounded=rounded, dtype=torch.float64), exact)


def test_a_fused_op_that_skips_a_rounding_is_noticed(mutate, rng):
    def wrong(right, x, weight, eps, *rest):
        return right(x.float(), weight, eps, *rest)

    mutate("rmsnorm_quantize_act", wrong)
    x, gain = torch.randn(5, 1000, generator=rng).bfloat16(), torch.rand(1000, generator=rng)
    fused = qk.rmsnorm_quantize_act(x, gain, 1e-5)
    assert not same_activation(fused, qk.quantize_act(qk.rmsnorm(x, gain, 1e-5)))


def test_a_rotation_of_unrounded_gates_is_noticed(mutate, rng):
    def wrong(right, x, *rest):
        return right(x.float(), *rest)

    mutate("silu_mul_hadamard_quantize_act", wrong)
    x = torch.randn(5, 96, generator=rng).bfloat16()
    fused = qk.silu_mul_hadamard_quantize_act(x)
    assert not same_activation(fused, qk.quantize_act(qk.hadamard(qk.silu_mul(x))))


def test_a_residual_before_the_rounding_is_noticed(mutate, rng):
    def wrong(right, x, weight, bias, residual):
        out = right(x.float(), weight, bias, None)
        return (out if residual is None else residual.float() + out).to(x.dtype)

    mutate("linear_bf16", wrong)
    weight = torch.randn(37, 100, generator=rng).bfloat16()
    x, residual = (torch.randn(30, width, generator=rng).bfloat16() for width in (100, 37))
    assert not same_bits(qk.linear(x, weight, residual=residual), residual + qk.linear(x, weight))
