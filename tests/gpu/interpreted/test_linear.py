"""Triton's linears, interpreted: floats within the budget, integers bit-equal to their definition."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

import qspec_kernels as qk
from qspec_kernels import formats
from qspec_kernels.backends.torch.linear_w4a8 import linear_w4a8 as torch_w4a8
from qspec_kernels.backends.triton import _launch, _packed
from qspec_kernels.backends.triton.linear_bf16 import linear_bf16
from qspec_kernels.backends.triton.linear_fp32 import linear_fp32
from qspec_kernels.backends.triton.linear_mxfp4a8 import linear_mxfp4a8
from qspec_kernels.backends.triton.linear_mxfp4a16 import linear_mxfp4a16
from qspec_kernels.backends.triton.linear_w4a4 import linear_w4a4
from qspec_kernels.backends.triton.linear_w4a8 import linear_w4a8
from qspec_kernels.backends.triton.linear_w4a16 import linear_w4a16
from reference.linear import integer_linear
from reference.linear import linear as exact_linear
from tests.kernels.cases import INTEGERS, WEIGHTS, Quantized, assert_within_budget, quantized, same_bits

pytestmark = pytest.mark.usefixtures("poisoned")

# M, K, N: several tiles of tokens; K odd, no multiple of a group, of 32 or of 64; N within and beyond tiles
SHAPES = [(1, 64, 16), (2, 7, 3), (5, 521, 48), (17, 300, 70)]
FLOATS = {"int4": linear_w4a16, "mxfp4": linear_mxfp4a16}
CODES = {("int4", "a8"): linear_w4a8, ("int4", "a4"): linear_w4a4, ("mxfp4", "a8"): linear_mxfp4a8}
# architectures whose columns are in another order than those of 80
OTHER_ORDERS = [90, 100]


@pytest.fixture
def arch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The architecture that launches take as given."""
    monkeypatch.setattr(_launch, "INTERPRETED_ARCH", request.param)
    return request.param


def made(
    rng: torch.Generator, kind: str, n: int, k: int, group: int
) -> tuple[Quantized, tuple[Tensor, Tensor], tuple[int, int, int]]:
    """A weight as numbers, as bytes (data, scales), and its sizes (n, k, group size)."""
    weight = quantized(kind, torch.randn(n, k, generator=rng), group, on_device=False)
    packed = formats.convert(weight.packed, f"{kind}_mma16")
    return weight, (packed.data, packed.scales), (n, k, packed.group_size)


def check_floats(rng, shape, kind, group, dtype=torch.float32, ops=FLOATS):
    m, k, n = shape
    x = torch.randn(m, k, generator=rng).to(dtype)
    bias, residual = torch.randn(n, generator=rng), torch.randn(m, n, generator=rng).to(dtype)
    weight, bytes_, sizes = made(rng, kind, n, k, group)
    out = ops[kind](x, *bytes_, bias, None, *sizes)
    assert out.dtype == dtype
    rounded = x.bfloat16()
    low = F.linear(rounded.float(), weight.values.float(), bias).to(dtype)
    assert_within_budget(out, exact_linear(rounded, weight.values, bias), low)
    assert same_bits(ops[kind](x, *bytes_, bias, residual, *sizes), residual + out)


@pytest.mark.parametrize(
    ("arch", "shape"),
    [(80, shape) for shape in SHAPES] + [(arch, SHAPES[2]) for arch in OTHER_ORDERS],
    indirect=["arch"],
)
@pytest.mark.parametrize(("kind", "group"), WEIGHTS)
def test_weight_only(arch, rng, shape, kind, group):
    check_floats(rng, shape, kind, group)


@pytest.mark.parametrize("kind", FLOATS)
def test_weight_only_of_bfloat16(rng, kind):
    check_floats(rng, (3, 100, 37), kind, 32, torch.bfloat16)


def check_integers(rng, shape, kind, group, act, ops=CODES):
    m, k, n = shape
    x, bias = torch.randn(m, k, generator=rng), torch.randn(n, generator=rng)
    residual = torch.randn(m, n, generator=rng)
    weight, bytes_, sizes = made(rng, kind, n, k, group)
    x[0, :3] = torch.tensor([50.0, -50.0, 0.0])[:k]
    activation = qk.quantize_act(x, bits=int(act[1:]), group_size=sizes[2] if act == "a4" else None)
    codes = (activation.codes, activation.scales)
    expected = integer_linear(*codes, weight.integers, weight.scales, sizes[2], bias, dtype=torch.float32)
    assert same_bits(ops[kind, act](*codes, *bytes_, bias, None, *sizes), expected)
    assert same_bits(ops[kind, act](*codes, *bytes_, bias, residual, *sizes), residual + expected)
    # what the CPU's kernels make of the same codes
    assert same_bits(qk.linear(activation, qk.to_device_layout(weight.packed), bias), expected)
    if (kind, act) == ("int4", "a8"):
        canonical = (weight.packed.data, weight.packed.scales)
        assert same_bits(torch_w4a8(*codes, *canonical, bias, None, *sizes), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "group", "act"), INTEGERS)
def test_integers_equal_their_definition(rng, shape, kind, group, act):
    check_integers(rng, shape, kind, group, act)


def test_integers_of_a_prompt(rng):
    check_integers(rng, (70, 130, 150), "int4", 64, "a8")


def check_every_scale(rng, linear):
    """Subnormal scales, the largest, and NaN, in the groups of `linear(data, scales)` [tokens, 16]."""
    codes = torch.randint(0, 16, (16, 16 * 32), generator=rng).to(torch.uint8)
    scales = torch.arange(256).to(torch.uint8).view(16, 16)
    packed = formats.convert(formats.get("mxfp4").pack(codes, scales, 32), "mxfp4_mma16")
    values = formats.get("mxfp4").dequantize(codes, torch.full_like(scales, 127)).view(16, 16, 32).sum(2)
    expected = values.double() * 2.0 ** (scales.double() - 127)
    # a NaN of one group is one of the whole row
    expected[15] = torch.nan
    out = linear(packed.data, packed.scales)
    assert torch.equal(out.t().nan_to_num(nan=7.0), expected.float().nan_to_num(nan=7.0))


# a token for each group, so that an output is a sum of 32 codes times one scale: exact, or beyond float32
ONE_GROUP_EACH = torch.eye(16).repeat_interleave(32, 1)


@pytest.mark.filterwarnings("ignore:overflow")
def test_every_scale_of_mxfp4(rng):
    x, ones = ONE_GROUP_EACH.to(torch.int8), torch.ones(16, 1)
    check_every_scale(rng, lambda w, s: linear_mxfp4a8(x, ones, w, s, None, None, 16, 512, 32))


def check_dense(rng, shape, x_dtype, weight_dtype, op):
    m, k, n = shape
    x = torch.randn(m, k, generator=rng).to(x_dtype)
    weight, bias = torch.randn(n, k, generator=rng).to(weight_dtype), torch.randn(n, generator=rng)
    out = op(x, weight, bias, None)
    assert out.dtype == x_dtype
    taken = x.to(weight_dtype)
    low = F.linear(taken.float(), weight.float(), bias).to(x_dtype)
    assert_within_budget(out, exact_linear(taken, weight, bias), low)
    residual = torch.randn(m, n, generator=rng).to(x_dtype)
    assert same_bits(op(x, weight, bias, residual), residual + out)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 2100, 40)], ids=str)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense(rng, shape, x_dtype, weight_dtype):
    op = linear_bf16 if weight_dtype == torch.bfloat16 else linear_fp32
    check_dense(rng, shape, x_dtype, weight_dtype, op)


def check_no_tokens(packed, dense):
    data, scales = torch.zeros(1, 1, 8, 4, 2, 2, 4, dtype=torch.uint8), torch.zeros(1, 16).half()
    assert packed(torch.ones(0, 64), data, scales, None, None, 16, 64, 64).shape == (0, 16)
    assert dense(torch.ones(0, 64), torch.ones(3, 64).bfloat16(), None, None).shape == (0, 3)


def test_no_tokens():
    check_no_tokens(linear_w4a16, linear_bf16)


def rows_of(rng: torch.Generator, group: int):
    """A linear whose K is cut in two, as a function of x alone."""
    _, bytes_, sizes = made(rng, "int4", 20, 1024, group)
    assert _launch._tiles.splits(20, 1024, 80) == 2
    bias = torch.randn(20, generator=rng)
    return lambda x: linear_w4a16(x, *bytes_, bias, None, *sizes)


def check_rows(op, x: Tensor, counts: tuple[int, ...]) -> None:
    """Rows of smaller calls are those of the largest call."""
    whole = op(x)
    for count in counts:
        assert same_bits(op(x[-count:]), whole[-count:]), f"{count} rows"


# of every tile size, apart and not
COUNTS = (1, 2, 5, 17)


# Sums inside a group are of integers, and exact in any order: how the interpreter's matrix product adds them,
# which depends on the number of rows, is no part of the kernel. Groups and splits round.
@pytest.mark.parametrize("group", [32, 128])
def test_rows_do_not_depend_on_each_other(rng, group):
    x = torch.randint(-128, 129, (65, 1024), generator=rng).float()
    check_rows(rows_of(rng, group), x, COUNTS)


def test_splits_that_follow_the_rows_are_caught(rng, monkeypatch):
    right = _launch._tiles.linear

    def wrong(m, n, arch, **rest):
        monkeypatch.setattr(_launch._tiles, "splits", lambda *shape: 2 if m > 4 else 1)
        return right(m, n, arch, **rest)

    x = torch.randint(-128, 129, (65, 1024), generator=rng).float()
    op = rows_of(rng, 128)
    monkeypatch.setattr(_launch._tiles, "linear", wrong)
    with pytest.raises(AssertionError, match="rows"):
        check_rows(op, x, COUNTS)


@triton.jit
def _nibbles_exchanged(w, MXFP4: tl.constexpr, INTEGER: tl.constexpr):
    TYPE: tl.constexpr = tl.int8 if INTEGER else tl.float32
    return ((w >> 4).to(tl.int32) - 8).to(TYPE), ((w & 15).to(tl.int32) - 8).to(TYPE)


@triton.jit
def _offset_left_in(w, MXFP4: tl.constexpr, INTEGER: tl.constexpr):
    TYPE: tl.constexpr = tl.int8 if INTEGER else tl.float32
    return (w & 15).to(TYPE), (w >> 4).to(TYPE)


@triton.jit
def _neighbours_scale(word, row, MXFP4: tl.constexpr):
    return (word >> (row + 1) % 2 * 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _scales_apart(acc, sums, scale, act_scale):
    return acc + (sums.to(tl.float32) * scale[:, None]) * act_scale[None, :]


@triton.jit
def _natural_columns(COUNT: tl.constexpr, ORDER: tl.constexpr):
    return tl.arange(0, COUNT)


@pytest.mark.parametrize(
    ("name", "mutant"),
    [("expand", _nibbles_exchanged), ("expand", _offset_left_in), ("weight_scale", _neighbours_scale)],
)
def test_mutants_fail(rng, monkeypatch, name, mutant):
    monkeypatch.setattr(_packed, name, mutant)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_floats(rng, (3, 100, 37), "int4", 32)
    with pytest.raises(AssertionError):
        check_integers(rng, (3, 100, 37), "int4", 32, "a8")


def test_mutant_of_the_rounding_fails(rng, monkeypatch):
    monkeypatch.setattr(_packed, "plus_term", _scales_apart)
    with pytest.raises(AssertionError):
        check_integers(rng, (3, 100, 37), "int4", 32, "a8")


@pytest.mark.parametrize("arch", [80, 90], indirect=True)
def test_mutant_of_the_order_fails(arch, rng, monkeypatch):
    monkeypatch.setattr(_packed, "columns", _natural_columns)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_floats(rng, (3, 100, 37), "int4", 32)
