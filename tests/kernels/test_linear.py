"""`linear` against the reference: budgets for floats, equality bit for bit for integers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import qspec_kernels as qk
from qspec_kernels import formats
from reference.linear import integer_linear
from reference.linear import linear as exact_linear
from tests.kernels.cases import FLOATS, INTEGERS, SHAPES, WEIGHTS, assert_within_budget, quantized, same_bits

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("x_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("weight_dtype", FLOATS, ids=str)
def test_dense(backend, rng, shape, x_dtype, weight_dtype):
    m, k, n = shape
    x = torch.randn(m, k, generator=rng).to(x_dtype)
    weight, bias = torch.randn(n, k, generator=rng).to(weight_dtype), torch.randn(n, generator=rng)
    for some_bias in (None, bias):
        out = qk.linear(x, weight, some_bias)
        assert out.dtype == x_dtype
        low = F.linear(x.to(weight_dtype).float(), weight.float(), some_bias).to(x_dtype)
        assert_within_budget(out, exact_linear(x, weight, some_bias), low)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("kind", "group"), WEIGHTS)
def test_weight_only(backend, rng, shape, dtype, kind, group):
    check_weight_only(rng, shape, dtype, kind, group)


def check_weight_only(rng, shape, dtype, kind, group):
    m, k, n = shape
    x, bias = torch.randn(m, k, generator=rng).to(dtype), torch.randn(n, generator=rng)
    weight = quantized(kind, torch.randn(n, k, generator=rng), group)
    out = qk.linear(x, weight.packed, bias)
    assert out.dtype == dtype
    low = F.linear(x.bfloat16().float(), weight.values.float(), bias).to(dtype)
    assert_within_budget(out, exact_linear(x, weight.values, bias), low)
    # the rounding of x is part of the op: against the rounded x only float32 sums may differ
    rounded = x.bfloat16()
    low = F.linear(rounded.float(), weight.values.float(), bias).to(dtype)
    assert_within_budget(out, exact_linear(rounded, weight.values, bias), low)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "group", "act"), INTEGERS)
def test_integers_equal_their_definition(backend, rng, shape, kind, group, act):
    check_integers(rng, shape, kind, group, act)


def check_integers(rng, shape, kind, group, act):
    m, k, n = shape
    x, bias = torch.randn(m, k, generator=rng), torch.randn(n, generator=rng)
    weight = quantized(kind, torch.randn(n, k, generator=rng), group)
    size = weight.packed.group_size
    activation = qk.quantize_act(x, bits=int(act[1:]), group_size=size if act == "a4" else None)
    operands = (activation.codes, activation.scales, weight.integers, weight.scales, size)
    for some_bias in (None, bias):
        out = qk.linear(activation, weight.packed, some_bias)
        expected = integer_linear(*operands, some_bias, dtype=torch.float32)
        assert same_bits(out, expected)
        assert_within_budget(out, integer_linear(*operands, some_bias), expected)
        assert same_bits(qk.linear(x, weight.packed, some_bias, act=act), out)
    rounded = qk.linear(x.bfloat16(), weight.packed, act=act)
    assert rounded.dtype == torch.bfloat16


@given(
    # blocks of rows and what is left of them, up to the widest
    m=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 17, 64]),
    k=st.integers(1, 300),
    n=st.integers(1, 40),
    case=st.sampled_from(INTEGERS),
    seed=st.integers(0, 2**32),
    magnitude=st.sampled_from([1e-20, 1.0, 1e6]),
)
def test_integers_of_any_shape(backend, m, k, n, case, seed, magnitude):
    kind, group, act = case
    rng = torch.Generator().manual_seed(seed)
    weight = quantized(kind, torch.randn(n, k, generator=rng), group)
    size = weight.packed.group_size
    x = torch.randn(m, k, generator=rng) * magnitude
    x[torch.rand(m, generator=rng) < 0.2] = 0
    activation = qk.quantize_act(x, bits=int(act[1:]), group_size=size if act == "a4" else None)
    expected = integer_linear(
        activation.codes, activation.scales, weight.integers, weight.scales, size, dtype=torch.float32
    )
    assert same_bits(qk.linear(activation, weight.packed), expected)


def test_long_rows_with_one_scale(backend, rng):
    # the sums of 17,000 products of extreme codes exceed 2^24: float32 would round inside the sum
    k = 17_000
    codes = torch.full((1, k), 127, dtype=torch.int8)
    codes[0, ::3] = 126
    activation = qk.QuantizedActivation(codes, torch.ones(1, 1), 8, k)
    int4 = formats.get("int4")
    weight_codes = torch.full((3, k), -8, dtype=torch.int8)
    packed = int4.pack(weight_codes, torch.ones(3, 1).half(), k)
    expected = integer_linear(codes, torch.ones(1, 1), weight_codes, torch.ones(3, 1), k, dtype=torch.float32)
    assert same_bits(qk.linear(activation, qk.to_device_layout(packed)), expected)


@pytest.mark.parametrize(("kind", "group"), WEIGHTS)
def test_float64(rng, kind, group):
    x, bias = torch.randn(5, 100, dtype=torch.float64, generator=rng), torch.randn(9, generator=rng)
    dense = torch.randn(9, 100, generator=rng)
    for weight in (dense, dense.bfloat16(), dense.double()):
        torch.testing.assert_close(
            qk.linear(x, weight, bias), exact_linear(x, weight, bias), rtol=1e-13, atol=1e-13
        )
    weight = quantized(kind, dense, group, on_device=False)
    out = qk.linear(x, weight.packed, bias)
    torch.testing.assert_close(out, exact_linear(x, weight.values, bias), rtol=1e-13, atol=1e-13)
    activation = qk.quantize_act(x)
    assert activation.scales.dtype == torch.float64
    expected = integer_linear(
        activation.codes, activation.scales, weight.integers, weight.scales, weight.packed.group_size
    )
    torch.testing.assert_close(qk.linear(x, weight.packed, act="a8"), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("kind", "group", "act"), INTEGERS)
def test_nan_stays_in_its_row(backend, rng, kind, group, act):
    x = torch.randn(4, 100, generator=rng)
    weight = quantized(kind, torch.randn(9, 100, generator=rng), group)
    clean = qk.linear(x, weight.packed, act=act)
    x[2, 5] = torch.nan
    out = qk.linear(x, weight.packed, act=act)
    assert out[2].isnan().all()
    assert same_bits(out[[0, 1, 3]], clean[[0, 1, 3]])


def test_leading_dimensions_and_strides(backend, rng):
    x, weight = torch.randn(2, 100, 3, generator=rng).transpose(1, 2), torch.randn(7, 100, generator=rng)
    packed = quantized("int4", weight, 32).packed
    for operand, act in ((weight, "a16"), (weight.bfloat16(), "a16"), (packed, "a16"), (packed, "a4")):
        out = qk.linear(x, operand, act=act)
        assert out.shape == (2, 3, 7)
        assert same_bits(out.reshape(6, 7), qk.linear(x.reshape(6, 100), operand, act=act))
    assert qk.linear(torch.zeros(0, 100), weight).shape == (0, 7)
    assert qk.linear(torch.zeros(2, 0, 100), packed, act="a8").shape == (2, 0, 7)


def test_weight_only_catches_a_dropped_last_group(mutate, rng):
    def wrong(right, x, data, scales, *rest):
        return right(x, data, torch.cat((scales[:, :-1], torch.zeros_like(scales[:, -1:])), 1), *rest)

    mutate("linear_w4a16", wrong)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_weight_only(rng, (3, 100, 37), torch.float32, "int4", 32)


def test_weight_only_catches_an_unrounded_input(mutate, rng):
    def wrong(right, x, *rest):
        return right(x.double(), *rest).float()

    mutate("linear_w4a16", wrong)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_weight_only(rng, (3, 100, 37), torch.float32, "int4", 32)


def _scales_apart(right, codes, act_scales, data, scales, *rest):
    # (sum * weight_scale) * act_scale instead of sum * (weight_scale * act_scale)
    return right(codes, torch.ones_like(act_scales), data, scales, *rest) * act_scales


def _contracted(right, codes, act_scales, data, scales, *rest):
    # sums that round once at the end, as fused multiply-adds nearly do
    return right(codes, act_scales.double(), data, scales, *rest).float()


def _low_and_high_nibble_exchanged(right, codes, act_scales, data, *rest):
    return right(codes, act_scales, (data >> 4) | (data << 4), *rest)


@pytest.mark.parametrize("wrong", [_scales_apart, _contracted, _low_and_high_nibble_exchanged])
def test_integers_catch(mutate, rng, wrong):
    mutate("linear_w4a8", wrong)
    with pytest.raises(AssertionError):
        check_integers(rng, (3, 100, 37), "int4", 32, "a8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            lambda x, w, p: {"x": x[:, :99], "weight": w},
            "x has 99 features; the weight of shape .7, 100. expects 100",
        ),
        (lambda x, w, p: {"x": x.half(), "weight": w}, "x is torch.float16; expected float32"),
        (lambda x, w, p: {"x": x, "weight": w.int()}, "weight is torch.int32"),
        (lambda x, w, p: {"x": x, "weight": p, "act": "a5"}, "act is 'a5'; int4 weights serve a16, a8, a4"),
        (lambda x, w, p: {"x": x, "weight": w, "bias": torch.ones(6)}, "bias has shape .6.; expected .7."),
        (
            lambda x, w, p: {"x": qk.quantize_act(x), "weight": w},
            "a quantised activation needs a PackedWeight",
        ),
        (
            lambda x, w, p: {"x": qk.quantize_act(x, bits=4), "weight": p},
            "x has 1 scales per token .group size 100.; expected 4",
        ),
        (lambda x, w, p: {"x": qk.quantize_act(x), "weight": p, "act": "a4"}, "quantised to 8 bits"),
        (lambda x, w, p: {"x": x.to("meta"), "weight": w}, "weight is on cpu but x is on meta"),
    ],
)
@pytest.mark.usefixtures("untyped", "torch_backend")
def test_bad_input(rng, arguments, message):
    weight = torch.randn(7, 100, generator=rng)
    x, packed = torch.randn(2, 100, generator=rng), quantized("int4", weight, 32).packed
    made = arguments(x, weight, packed)
    with pytest.raises(qk.UsageError, match=message) as error:
        qk.linear(made.pop("x"), made.pop("weight"), **made)
    assert error.value.hint


def test_mxfp4_has_no_4_bit_activations(torch_backend, rng):
    packed = quantized("mxfp4", torch.randn(7, 64, generator=rng), 32).packed
    with pytest.raises(qk.UsageError, match="act is 'a4'; mxfp4 weights serve a16, a8"):
        qk.linear(torch.ones(1, 64), packed, act="a4")
