"""The CUDA linears, their sources compiled for the CPU, against the reference."""

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels import formats
from qspec_kernels.backends.cuda import _float, _integer, _tiles
from qspec_kernels.errors import UsageError
from tests.gpu.emulation.cases import SCHEDULES, check, emulated, kind_of, linear
from tests.gpu.emulation.run import EmulationError
from tests.kernels.cases import FLOATS, quantized, same_bits

LINEARS = ["linear_w4a8", "linear_mxfp4a8", "linear_w4a16", "linear_mxfp4a16", "linear_w4a4"]

# M, K, N, group: M chooses the tiles; tails in each of them, K no multiple of a group, a stage or a chunk of
# 16 bytes, one warp or several along K
SHAPES = [(1, 64, 16, 32), (3, 100, 37, 32), (17, 304, 70, 128), (40, 272, 80, 64), (5, 700, 33, -1)]


def groups(name: str) -> set[int]:
    return {32} if kind_of(name) == "mxfp4" else {32, 64, 128, -1}


CASES = [
    (name, *shape) for name in LINEARS for shape in SHAPES if shape[3] in groups(name) or shape[0] in (17, 40)
]


@pytest.mark.parametrize(("name", "m", "k", "n", "group"), CASES)
def test_against_the_reference(rng, name, m, k, n, group):
    for schedule in SCHEDULES:
        with emulated(**schedule):
            size = group if group in groups(name) else 32
            check(name, (m, k, n), size, rng, FLOATS if m == 17 else FLOATS[:1])


@pytest.mark.parametrize("name", LINEARS)
def test_rows_do_not_depend_on_their_number(rng, name):
    # 1, 9, 20 and 40 rows: four sizes of tiles; more than one stage for each of the parts along K
    n, k = 40, 1040
    weight = quantized(kind_of(name), torch.randn(n, k, generator=rng), 32, on_device=False).packed
    x = torch.randn(40, k, generator=rng)
    with emulated():
        whole = linear(name, x, weight)
        for m in (1, 9, 20):
            assert same_bits(linear(name, x[:m], weight), whole[:m]), m
        assert same_bits(linear(name, x[39:], weight), whole[39:])
        assert linear(name, x[:0], weight).shape == (0, n)


@pytest.mark.parametrize("name", LINEARS)
def test_tiles_of_large_layers(rng, name, monkeypatch):
    # with many row tiles fewer warps share K, and one of them has all of it
    monkeypatch.setattr(_tiles, "FEW_ROW_TILES", 1)
    for module in (_integer, _float):
        module.kernel.cache_clear()
    with emulated(late=False):
        check(name, (40, 656, 37), 32, rng)
    monkeypatch.undo()
    for module in (_integer, _float):
        module.kernel.cache_clear()


@pytest.mark.parametrize("name", ["linear_w4a8", "linear_w4a16"])
def test_weights_leave_the_cache_first_where_nothing_reads_them_again(rng, name):
    # 64 tokens are one block, 70 are two
    n, k = 20, 64
    weight = quantized(kind_of(name), torch.randn(n, k, generator=rng), 32, on_device=False).packed
    x = torch.randn(70, k, generator=rng)
    policy = "in.m <= kTokens ? evict_first() : evict_normal()"
    with emulated():
        whole = linear(name, x, weight)
        assert same_bits(linear(name, x[:64], weight), whole[:64])
    with emulated(edits=[(policy, "evict_first()")]):
        assert same_bits(linear(name, x[:64], weight), whole[:64])
        with pytest.raises(EmulationError, match="reads again what was to leave the cache first"):
            linear(name, x, weight)


@pytest.mark.parametrize("name", LINEARS)
def test_a_nan_stays_in_its_row(rng, name):
    weight = quantized(kind_of(name), torch.randn(9, 100, generator=rng), 32, on_device=False).packed
    x = torch.randn(3, 100, generator=rng)
    with emulated():
        clean = linear(name, x, weight)
        x[1, 5] = torch.nan
        out = linear(name, x, weight)
    assert out[1].isnan().all()
    assert same_bits(out[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("name", ["linear_mxfp4a8", "linear_mxfp4a16"])
def test_every_scale_and_code_of_mxfp4(name):
    mxfp4 = formats.get("mxfp4")
    codes = torch.arange(16, dtype=torch.uint8).repeat(256, 4)
    packed = mxfp4.pack(codes, torch.arange(256).byte()[:, None].repeat(1, 2), 32)
    # x picks one feature at a time: the outputs are the dequantised weights themselves
    x = torch.eye(64)[[0, 1, 2, 3, 4, 5, 6, 7, 24, 41, 58, 15]]
    values = mxfp4.dequantize(*mxfp4.unpack(packed))[:, x.argmax(1)].T
    with emulated():
        out = linear(name, x, packed)
        assert linear(name, -x, packed)[:, 255].isnan().all()
    if name.endswith("a8"):
        x = qk.quantize_act(x)
        values = qk.linear(x, qk.to_device_layout(packed), act="a8")
    assert out[:, 255].isnan().all()
    # + 0.0: sums begin at zero, so that there is no negative one
    assert same_bits(out[:, :255], values[:, :255] + 0.0)


def test_addresses_that_are_not_aligned(rng):
    packed = quantized("int4", torch.randn(20, 64, generator=rng), 32, on_device=False).packed
    for name in ("linear_w4a8", "linear_w4a16"):
        x = torch.randn(3, 64, generator=rng).bfloat16()
        with emulated():
            expected = linear(name, x, packed)
            shifted = torch.empty(3 * 64 + 1, dtype=x.dtype)[1:].copy_(x.flatten()).view(3, 64)
            assert same_bits(linear(name, shifted, packed), expected)


def test_rows_too_long_for_integer_sums():
    k = 131_073
    packed = formats.get("int4").pack(torch.zeros(1, k, dtype=torch.int8), torch.ones(1, 1).half(), k)
    with emulated(), pytest.raises(UsageError, match="k is 131073 with one scale per row"):
        linear("linear_w4a8", torch.ones(1, k), packed)
