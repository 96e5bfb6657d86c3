"""The linears of the prefill phase, interpreted: what they compute, and that rows stand alone."""

import pytest
import torch
import triton
import triton.language as tl

from qspec_kernels.backends.triton import _prefill, _tiles
from qspec_kernels.backends.triton._packed import operand
from qspec_kernels.backends.triton._prefill import tile_of
from qspec_kernels.backends.triton._prefill_launch import plan_prefill
from qspec_kernels.backends.triton.linear_bf16_prefill import linear_bf16_prefill
from qspec_kernels.backends.triton.linear_mxfp4a8_prefill import linear_mxfp4a8_prefill
from qspec_kernels.backends.triton.linear_mxfp4a16_prefill import linear_mxfp4a16_prefill
from qspec_kernels.backends.triton.linear_w4a4_prefill import linear_w4a4_prefill
from qspec_kernels.backends.triton.linear_w4a8_prefill import linear_w4a8_prefill
from qspec_kernels.backends.triton.linear_w4a16_prefill import linear_w4a16_prefill
from tests.gpu.interpreted.served import sequential_dots
from tests.gpu.interpreted.test_linear import (
    ONE_GROUP_EACH,
    arch,
    check_dense,
    check_every_scale,
    check_floats,
    check_integers,
    check_no_tokens,
    check_rows,
    made,
)
from tests.kernels.cases import INTEGERS, WEIGHTS

__all__ = ["arch"]

pytestmark = pytest.mark.usefixtures("poisoned")

# M, K, N: tails in each of them, more than one tile of tokens and of features, more than one step along K
SHAPES = [(2, 7, 3), (34, 200, 66)]
FLOATS = {"int4": linear_w4a16_prefill, "mxfp4": linear_mxfp4a16_prefill}
CODES = {
    ("int4", "a8"): linear_w4a8_prefill,
    ("int4", "a4"): linear_w4a4_prefill,
    ("mxfp4", "a8"): linear_mxfp4a8_prefill,
}
# architectures whose dots are of other lengths and orders
CASES = [(80, SHAPES[1]), (90, SHAPES[0]), (90, SHAPES[1])]


@pytest.mark.parametrize(("arch", "shape"), CASES, indirect=["arch"])
@pytest.mark.parametrize(("kind", "group"), WEIGHTS)
def test_weight_only(arch, rng, shape, kind, group):
    check_floats(rng, shape, kind, group, ops=FLOATS)


@pytest.mark.parametrize("kind", FLOATS)
def test_weight_only_of_bfloat16(rng, kind):
    check_floats(rng, (3, 100, 37), kind, 32, torch.bfloat16, FLOATS)


@pytest.mark.parametrize(("arch", "shape"), CASES, indirect=["arch"])
@pytest.mark.parametrize(("kind", "group", "act"), INTEGERS)
def test_integers_equal_their_definition(arch, rng, shape, kind, group, act):
    check_integers(rng, shape, kind, group, act, CODES)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense(rng, shape, dtype):
    check_dense(rng, shape, dtype, torch.bfloat16, linear_bf16_prefill)


@pytest.mark.filterwarnings("ignore:overflow")
def test_every_scale_of_mxfp4(rng):
    x = ONE_GROUP_EACH
    check_every_scale(rng, lambda w, s: linear_mxfp4a16_prefill(x, w, s, None, None, 16, 512, 32))


def test_no_tokens():
    check_no_tokens(linear_w4a16_prefill, linear_bf16_prefill)


@pytest.fixture
def one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which large tiles pay from few tokens on, with products added up as matrix units do."""
    monkeypatch.setattr(_tiles, "PROCESSORS", {80: 1})
    sequential_dots(monkeypatch)


# of smaller tiles than those of 128
COUNTS = (1, 40)


@pytest.mark.usefixtures("one_processor")
@pytest.mark.parametrize("arch", [90], indirect=True)
@pytest.mark.parametrize(("kind", "group"), [("int4", 32), ("int4", 128), ("int4", 200), ("mxfp4", 32)])
def test_rows_do_not_depend_on_each_other(arch, rng, kind, group):
    _, bytes_, sizes = made(rng, kind, 100, 200, group)
    plans = [
        plan_prefill((m, 100, 200), group, arch, mxfp4=kind == "mxfp4", x_bytes=2) for m in (*COUNTS, 128)
    ]
    assert len({plan.tile.block_m for plan in plans}) == 3
    x = torch.randn(128, 200, generator=rng)
    check_rows(lambda x: FLOATS[kind](x, *bytes_, None, None, *sizes), x, COUNTS)


@pytest.mark.usefixtures("one_processor")
def test_rows_of_a_dense_weight_do_not_depend_on_each_other(rng):
    weight = torch.randn(100, 200, generator=rng).bfloat16()
    x = torch.randn(128, 200, generator=rng)
    check_rows(lambda x: linear_bf16_prefill(x, weight, None, None), x, COUNTS)


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
    x = torch.randn(128, 200, generator=rng)
    with pytest.raises(AssertionError, match="rows"):
        check_rows(lambda x: linear_w4a16_prefill(x, *bytes_, None, None, *sizes), x, COUNTS)


@pytest.mark.parametrize("arch", [90], indirect=True)
@pytest.mark.parametrize(
    ("name", "mutant", "kind", "group"),
    [("_shrunk", _twice_as_large, "mxfp4", 32), ("_expanded", _blocks_exchanged, "int4", 128)],
)
def test_mutants_fail(arch, rng, monkeypatch, name, mutant, kind, group):
    monkeypatch.setattr(_prefill, name, mutant)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_floats(rng, (3, 300, 37), kind, group, ops=FLOATS)
