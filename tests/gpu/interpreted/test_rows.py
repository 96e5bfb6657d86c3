"""Norms, gates, quantisation, rotary embedding, cache and table: the checks of every path, interpreted."""

import pytest
import torch
from hypothesis import given, settings

import qspec_kernels as qk
from qspec_kernels.backends.triton import _quantize, _rows
from tests.gpu.interpreted.served import served
from tests.kernels import test_attention as attention_checks
from tests.kernels import test_elementwise as elementwise
from tests.kernels import test_fused as fused
from tests.kernels import test_quantize_act as quantization
from tests.kernels.cases import FLOATS, same_bits
from tests.kernels.test_row_invariance import numbers

# numpy warns of what floating point defines
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def mutate(monkeypatch, poisoned):
    yield from served(monkeypatch)


@pytest.fixture
def narrow(monkeypatch):
    """Programs hold 64 elements, so that rows are gone through in pieces."""
    for module in (_rows, _quantize):
        monkeypatch.setattr(module, "LARGEST", 64)
    monkeypatch.setattr(_quantize, "TILE", 32)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 1040)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rmsnorm(rng, shape, dtype):
    elementwise.check_rmsnorm(rng, shape, dtype)


def test_rmsnorm_in_pieces(rng, narrow):
    elementwise.check_rmsnorm(rng, (2, 150), torch.float32)


@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (2, 2100)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_silu_mul(rng, shape, dtype):
    elementwise.check_silu_mul(rng, shape, dtype)


def test_silu_mul_of_extremes():
    elementwise.test_silu_mul_of_extremes(None)


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 2, 6), (7, 5, 64), (2, 3, 160)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rope(rng, shape, dtype):
    elementwise.check_rope(rng, shape, dtype, 1.3)


def test_rope_of_far_positions():
    # a million turns by whole radians: what float32 keeps of such an angle is all there is to lose
    positions, inv_freq = torch.tensor([1_000_003, 16_777_215]), torch.tensor([1.0, 0.7])
    out = qk.rope(torch.tensor([[[1.0, 1.0, 0.0, 0.0]]] * 2), positions, inv_freq)[:, 0]
    angles = (positions.float()[:, None] * inv_freq).double()
    exact = torch.cat((angles.cos(), angles.sin()), 1)
    assert (out.double() - exact).abs().max() < 2e-7


@settings(max_examples=8)
@given(values=quantization.ROWS)
def test_quantize_act(values):
    for bits, group, clip in ((8, None, 1.0), (4, 32, 0.9), (4, 7, 0.5)):
        quantization.check_quantize(torch.from_numpy(values), bits, group, clip, False)


def test_quantize_act_in_pieces(rng, narrow):
    for group in (None, 5, 64, 100):
        quantization.check_quantize(torch.randn(3, 150, generator=rng), 8, group, 0.9, False)


def test_special_rows():
    quantization.test_special_rows(None)


@pytest.mark.parametrize("quantized", fused.QUANTIZATIONS, ids=str)
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 1), (torch.float32, 200), (torch.bfloat16, 40)])
def test_fused_equals_the_composition(rng, dtype, quantized, width):
    check_fused(rng, dtype, quantized, width)


def test_fused_in_pieces(rng, narrow):
    for quantized in ({"bits": 8}, {"bits": 4, "group_size": 70}):
        check_fused(rng, torch.float32, quantized, 100)


def check_fused(rng, dtype, quantized, width):
    fused.test_rmsnorm_quantize_act(None, rng, dtype, quantized, width)
    fused.test_silu_mul_quantize_act(None, rng, dtype, quantized, width)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "normed", "d"),
    [
        (torch.float32, torch.float32, True, 80),
        (torch.float32, torch.bfloat16, False, 80),
        (torch.bfloat16, torch.bfloat16, True, 2),
    ],
)
def test_rope_cache_write(rng, dtype, cache_dtype, normed, d):
    fused.test_rope_cache_write(None, rng, dtype, cache_dtype, normed, d)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_cache_write(rng, dtype):
    attention_checks.check_cache_write(rng, dtype, torch.int64)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_embedding(rng, dtype):
    table = torch.randn(9, 1100, generator=rng).to(dtype)
    ids = torch.tensor([8, 0, 3, 3])
    assert same_bits(qk.embedding(table, ids), table[ids].float())
    assert same_bits(qk.embedding(table, ids, rounded=True), table[ids].bfloat16().float())


ROWWISE = {
    "rmsnorm": lambda x: qk.rmsnorm(x, torch.linspace(0.5, 1.5, x.shape[1])),
    "silu_mul": lambda x: qk.silu_mul(x[:, :-1]),
    "quantize_act": lambda x: numbers(qk.quantize_act(x, bits=4, group_size=32)),
    "rmsnorm_quantize_act": lambda x: numbers(qk.rmsnorm_quantize_act(x, torch.ones(x.shape[1]))),
}


@pytest.mark.parametrize("name", ROWWISE)
def test_rows_do_not_depend_on_their_company(rng, name):
    check_rows(ROWWISE[name], rng)


def check_rows(op, rng):
    x = torch.randn(9, 101, generator=rng)
    whole = op(x)
    x[1::2] *= 1e4
    assert same_bits(op(x)[::2], whole[::2])
    for row in (0, 4, 8):
        assert same_bits(op(x[row : row + 1]), whole[row : row + 1])


def _one_scale(right, x, bits, group_size, clip):
    codes, scales = right(x.reshape(1, -1).contiguous(), bits, x.numel(), clip)
    return codes.view(x.shape), scales.expand(len(x), -(-x.shape[1] // group_size)).contiguous()


MUTANTS = {
    "rmsnorm": lambda right, x, weight, eps: right(x, weight, eps * 10),
    "silu_mul": lambda right, x: right(x.roll(x.shape[1] // 2, 1)),
    "rope": lambda right, x, positions, *rest: right(x, positions + 1, *rest),
    "cache_write": lambda right, k_cache, v_cache, k, v, *rest: right(k_cache, v_cache, v, k, *rest),
    "rmsnorm_quantize_act": lambda right, x, weight, *rest: right(x, weight.flip(0), *rest),
    "silu_mul_quantize_act": lambda right, x, bits, group, clip: right(x, bits, group, clip * 127 / 128),
    "quantize_act": _one_scale,
}


@pytest.mark.parametrize("op", MUTANTS)
def test_the_checks_catch(mutate, rng, op):
    checks = {
        "rmsnorm": lambda: elementwise.check_rmsnorm(rng, (5, 64), torch.float32),
        "silu_mul": lambda: elementwise.check_silu_mul(rng, (5, 128), torch.float32),
        "rope": lambda: elementwise.check_rope(rng, (7, 3, 64), torch.float32, 1.0),
        "cache_write": lambda: attention_checks.check_cache_write(rng, torch.float32, torch.int64),
        "quantize_act": lambda: check_rows(ROWWISE["quantize_act"], rng),
    }
    mutate(op, MUTANTS[op])
    with pytest.raises(AssertionError):
        checks.get(op, lambda: check_fused(rng, torch.float32, {"bits": 8}, 40))()
