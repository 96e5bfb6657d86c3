"""The linears of the prefill phase, interpreted: what they compute, and that rows stand alone."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

import qspec_kernels as qk
from qspec_kernels import formats
from qspec_kernels.backends.triton import _prefill, _tiles
from qspec_kernels.backends.triton._packed import operand
from qspec_kernels.backends.triton._prefill import tile_of
from qspec_kernels.backends.triton._prefill_launch import plan_prefill
from qspec_kernels.backends.triton.linear_bf16_prefill import linear_bf16_prefill
from qspec_kernels.backends.triton.linear_mxfp4a8 import linear_mxfp4a8
from qspec_kernels.backends.triton.linear_mxfp4a8_prefill import linear_mxfp4a8_prefill
from qspec_kernels.backends.triton.linear_mxfp4a16_prefill import linear_mxfp4a16_prefill
from qspec_kernels.backends.triton.linear_w4a4 import linear_w4a4
from qspec_kernels.backends.triton.linear_w4a4_prefill import linear_w4a4_prefill
from qspec_kernels.backends.triton.linear_w4a8 import linear_w4a8
from qspec_kernels.backends.triton.linear_w4a8_prefill import linear_w4a8_prefill
from qspec_kernels.backends.triton.linear_w4a16_prefill import linear_w4a16_prefill
from reference.linear import integer_linear
from reference.linear import linear as exact_linear
from tests.gpu.interpreted.served import sequential_dots
from tests.gpu.interpreted.test_linear import arch, made
from tests.kernels.cases import INTEGERS, WEIGHTS, assert_within_budget, same_bits

__all__ = ["arch"]

pytestmark = pytest.mark.usefixtures("poisoned")

# M, K, N: tails in each of them, more than one tile of tokens and of features, more than one step along K
SHAPES = [(2, 7, 3), (34, 200, 66)]
FLOATS = {"int4": linear_w4a16_prefill, "mxfp4": linear_mxfp4a16_prefill}
# with the same linear of the decode phase
CODES = {
    ("int4", "a8"): (linear_w4a8_prefill, linear_w4a8),
    ("int4", "a4"): (linear_w4a4_prefill, linear_w4a4),
    ("mxfp4", "a8"): (linear_mxfp4a8_prefill, linear_mxfp4a8),
}
# architectures whose dots are of other lengths and orders
CASES = [(80, SHAPES[1]), (90, SHAPES[0]), (90, SHAPES[1])]


def check_floats(rng, shape, kind, group, dtype=torch.float32):
    m, k, n = shape
    x = torch.randn(m, k, generator=rng).to(dtype)
    bias, residual = torch.randn(n, generator=rng), torch.randn(m, n, generator=rng).to(dtype)
    weight, bytes_, sizes = made(rng, kind, n, k, group)
    out = FLOATS[kind](x, *bytes_, bias, None, *sizes)
    assert out.dtype == dtype
    rounded = x.bfloat16()
    low = F.linear(rounded.float(), weight.values.float(), bias).to(dtype)
    assert_within_budget(out, exact_linear(rounded, weight.values, bias), low)
    assert same_bits(FLOATS[kind](x, *bytes_, bias, residual, *sizes), residual + out)


@pytest.mark.parametrize(("arch", "shape"), CASES, indirect=["arch"])
@pytest.mark.parametrize(("kind", "group"), WEIGHTS)
def test_weight_only(arch, rng, shape, kind, group):
    check_floats(rng, shape, kind, group)


@pytest.mark.parametrize("kind", FLOATS)
def test_weight_only_of_bfloat16(rng, kind):
    check_floats(rng, (3, 100, 37), kind, 32, torch.bfloat16)


def check_integers(rng, shape, kind, group, act):
    m, k, n = shape
    x, bias = torch.randn(m, k, generator=rng), torch.randn(n, generator=rng)
    residual = torch.randn(m, n, generator=rng)
    weight, bytes_, sizes = made(rng, kind, n, k, group)
    x[0, :3] = torch.tensor([50.0, -50.0, 0.0])[:k]
    activation = qk.quantize_act(x, bits=int(act[1:]), group_size=sizes[2] if act == "a4" else None)
    codes = (activation.codes, activation.scales)
    prefill, decode = CODES[kind, act]
    expected = integer_linear(*codes, weight.integers, weight.scales, sizes[2], bias, dtype=torch.float32)
    assert same_bits(prefill(*codes, *bytes_, bias, None, *sizes), expected)
    out = prefill(*codes, *bytes_, bias, residual, *sizes)
    assert same_bits(out, residual + expected)
    assert same_bits(out[:1], decode(*(c[:1] for c in codes), *bytes_, bias, residual[:1], *sizes))


@pytest.mark.parametrize(("arch", "shape"), CASES, indirect=["arch"])
@pytest.mark.parametrize(("kind", "group", "act"), INTEGERS)
def test_integers_equal_their_definition(arch, rng, shape, kind, group, act):
    check_integers(rng, shape, kind, group, act)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense(rng, shape, dtype):
    m, k, n = shape
    x, weight = torch.randn(m, k, generator=rng).to(dtype), torch.randn(n, k, generator=rng).bfloat16()
    bias, residual = torch.randn(n, generator=rng), torch.randn(m, n, generator=rng).to(dtype)
    out = linear_bf16_prefill(x, weight, bias, None)
    assert out.dtype == dtype
    rounded = x.bfloat16()
    low = F.linear(rounded.float(), weight.float(), bias).to(dtype)
    assert_within_budget(out, exact_linear(rounded, weight, bias), low)
    assert same_bits(linear_bf16_prefill(x, weight, bias, residual), residual + out)


@pytest.mark.filterwarnings("ignore:overflow")
def test_every_scale_of_mxfp4(rng):
    # a token for each group, so that an output is a sum of 32 codes times one scale: exact, or beyond float32
    codes = torch.randint(0, 16, (16, 16 * 32), generator=rng).to(torch.uint8)
    scales = torch.arange(256).to(torch.uint8).view(16, 16)
    packed = formats.convert(formats.get("mxfp4").pack(codes, scales, 32), "mxfp4_mma16")
    x = torch.eye(16).repeat_interleave(32, 1)
    out = linear_mxfp4a16_prefill(x, packed.data, packed.scales, None, None, 16, 512, 32)
    values = formats.get("mxfp4").dequantize(codes, torch.full_like(scales, 127)).view(16, 16, 32).sum(2)
    expected = (values.double() * 2.0 ** (scales.double() - 127)).float()
    # a NaN of one group is one of the whole row
    expected[15] = torch.nan
    assert torch.equal(out.t().nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))


def test_no_tokens():
    data, scales = torch.zeros(1, 1, 8, 4, 2, 2, 4, dtype=torch.uint8), torch.zeros(1, 16).half()
    assert linear_w4a16_prefill(torch.ones(0, 64), data, scales, None, None, 16, 64, 64).shape == (0, 16)
    assert linear_bf16_prefill(torch.ones(0, 64), torch.ones(3, 64).bfloat16(), None, None).shape == (0, 3)


@pytest.fixture
def one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which large tiles pay from few tokens on, with products added up as matrix units do."""
    monkeypatch.setattr(_tiles, "PROCESSORS", {80: 1})
    sequential_dots(monkeypatch)


def check_rows(op, x: Tensor) -> None:
    """Rows of calls with smaller tiles are those of the largest call."""
    whole = op(x)
    for count in (1, 40):
        assert same_bits(op(x[-count:]), whole[-count:]), f"{count} rows"


@pytest.mark.usefixtures("one_processor")
@pytest.mark.parametrize("arch", [90], indirect=True)
@pytest.mark.parametrize(("kind", "group"), [("int4", 32), ("int4", 128), ("int4", 200), ("mxfp4", 32)])
def test_rows_do_not_depend_on_each_other(arch, rng, kind, group):
    _, bytes_, sizes = made(rng, kind, 100, 200, group)
    plans = [plan_prefill((m, 100, 200), group, arch, mxfp4=kind == "mxfp4") for m in (1, 40, 128)]
    assert len({plan.tile.block_m for plan in plans}) == 3
    check_rows(lambda x: FLOATS[kind](x, *bytes_, None, None, *sizes), torch.randn(128, 200, generator=rng))


@pytest.mark.usefixtures("one_processor")
def test_rows_of_a_dense_weight_do_not_depend_on_each_other(rng):
    weight = torch.randn(100, 200, generator=rng).bfloat16()
    check_rows(lambda x: linear_bf16_prefill(x, weight, None, None), torch.randn(128, 200, generator=rng))


@triton.jit
def _place(out, m, n, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, TOGETHER: tl.constexpr):
    tile_n, tile_m = tile_of(m, n, BLOCK_N, BLOCK_M, TOGETHER)
    tl.store(out + tl.program_id(0), tile_n * 100 + tile_m)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 6), (7, 3)], ids=str)
def test_programs_share_the_tiles_out(shape):
    tiles_m, tiles_n = shape
    out = torch.full((tiles_m * tiles_n,), -1)
    _place[(tiles_m * tiles_n,)](out, tiles_m * 8 - 1, tiles_n * 16, BLOCK_N=16, BLOCK_M=8, TOGETHER=2)
    assert sorted(out.tolist()) == [i * 100 + j for i in range(tiles_n) for j in range(tiles_m)]


@triton.jit
def _wide_tiles_round_scales(acc, sums, scale, act_scale):
    if sums.shape[1] > 64:
        scale = scale.to(tl.float16).to(tl.float32) * 1.001
    return acc + sums * scale[:, None]


@triton.jit
def _twice_as_large(word, row):
    e = (word >> row % 4 * 8) & 255
    return (tl.maximum(e - 2, 0) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _blocks_exchanged(w, MXFP4: tl.constexpr, INTEGER: tl.constexpr, ORDER: tl.constexpr, DOT: tl.constexpr):
    numbers = operand(w, MXFP4, INTEGER, ORDER)
    if DOT == 128:
        numbers = tl.reshape(numbers, (w.shape[0] // 2 * 16, 128))
    return numbers


@pytest.mark.usefixtures("one_processor")
@pytest.mark.parametrize("arch", [90], indirect=True)
def test_mutant_of_the_rows_fails(arch, rng, monkeypatch):
    monkeypatch.setattr(_prefill, "plus_term", _wide_tiles_round_scales)
    _, bytes_, sizes = made(rng, "int4", 100, 200, 32)
    with pytest.raises(AssertionError, match="rows"):
        check_rows(
            lambda x: linear_w4a16_prefill(x, *bytes_, None, None, *sizes),
            torch.randn(128, 200, generator=rng),
        )


@pytest.mark.parametrize("arch", [90], indirect=True)
@pytest.mark.parametrize(
    ("name", "mutant", "kind", "group"),
    [("_shrunk", _twice_as_large, "mxfp4", 32), ("_expanded", _blocks_exchanged, "int4", 128)],
)
def test_mutants_fail(arch, rng, monkeypatch, name, mutant, kind, group):
    monkeypatch.setattr(_prefill, name, mutant)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_floats(rng, (3, 300, 37), kind, group)
