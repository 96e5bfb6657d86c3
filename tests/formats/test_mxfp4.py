"""The numbers of `mxfp4`, against an exhaustive search and against an implementation nobody here wrote."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from qspec_kernels.formats import mxfp4
from reference import mxfp4 as reference

TIES = [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4)]
SMALLEST = 2.0**-149  # the smallest float32 subnormal


def blocks(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([row + [0.0] * (32 - len(row)) for row in rows])


def equal(ours: tuple[torch.Tensor, torch.Tensor], theirs: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(("tie", "value"), TIES)
@pytest.mark.parametrize("exponent", [0, -120, 100])
@pytest.mark.parametrize("sign", [1, -1])
def test_ties_go_to_the_even_code(tie: float, value: float, exponent: int, sign: int) -> None:
    # 4 pins the scale; neighbours one ulp away must go each to its own side
    below, above = math.nextafter(tie, 0), math.nextafter(tie, 8)
    weight = torch.tensor([[4, tie, below, above]], dtype=torch.float64) * sign * 2.0**exponent
    values = mxfp4.dequantize(*mxfp4.quantize(weight)).double() * sign * 2.0**-exponent
    assert values[0, 1] == value
    assert values[0, 2] <= value <= values[0, 3]
    assert values[0, 2] < values[0, 3]


@settings(deadline=None)
@given(
    st_numpy.arrays(
        "float32",
        st.tuples(st.integers(1, 3), st.integers(1, 70)),
        elements=st.floats(width=32, allow_infinity=False),
    )
)
def test_equals_the_exhaustive_search(array) -> None:
    weight = torch.from_numpy(array)
    assert equal(mxfp4.quantize(weight), reference.quantize(weight))
    assert equal(mxfp4.quantize(weight.double()), reference.quantize(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 31), (2, 32), (5, 33), (64, 416), (1, 40000)])
def test_equals_the_exhaustive_search_on_gaussians(dtype: torch.dtype, n: int, k: int) -> None:
    weight = (torch.randn(n, k) * torch.exp2(torch.randint(-20, 10, (n, 1)))).to(dtype)
    codes, scales = mxfp4.quantize(weight)
    assert equal((codes, scales), reference.quantize(weight))
    expected = reference.dequantize(codes, scales)
    assert torch.equal(mxfp4.dequantize(codes, scales).double(), expected)


def test_every_byte_and_code_dequantises_like_the_search() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(256, 2)
    scales = torch.arange(256, dtype=torch.uint8)[:, None]
    ours, expected = mxfp4.dequantize(codes, scales), reference.dequantize(codes, scales)
    # float32 overflows to infinity where the value exceeds it, which no float32 weight reaches
    assert torch.equal(ours.nan_to_num(nan=7.0), expected.float().nan_to_num(nan=7.0))
    assert ours[255].isnan().all()
    assert ours[:255].isfinite()[:253].all()


@settings(deadline=None)
@given(st.integers(-126, 125), st.lists(st.floats(-1, 1, width=32), min_size=32, max_size=32))
def test_error_is_half_a_step_or_the_clip(exponent: int, values: list[float]) -> None:
    weight = torch.tensor([values], dtype=torch.float64) * 2.0**exponent
    codes, scales = mxfp4.quantize(weight)
    error = (reference.dequantize(codes, scales) - weight).abs()
    scale = 2.0 ** (int(scales) - 127)
    half_step = torch.maximum(weight.abs() / 4, torch.tensor(scale / 4))
    # values above 6 are clipped to it, and lie below 8
    bound = torch.where(weight.abs() > 5 * scale, 2 * scale, half_step)
    assert (error <= bound).all()


def test_zero_blocks_keep_signs_and_have_the_smallest_scale() -> None:
    codes, scales = mxfp4.quantize(torch.tensor([[0.0, -0.0] * 16]))
    assert scales.tolist() == [[0]]
    assert codes.tolist() == [[0, 8] * 16]
    assert mxfp4.dequantize(codes, scales)[0, 1].signbit()


def test_a_small_negative_value_keeps_its_sign_as_code_8() -> None:
    codes, _ = mxfp4.quantize(blocks([4.0, -0.2, 0.2]))
    assert codes[0, :3].tolist() == [6, 8, 0]


def test_subnormal_blocks_are_rounded_on_the_grid_of_the_smallest_scale() -> None:
    rows = [2.0**-127, 2.0**-128, 2.0**-129, -(2.0**-129) - SMALLEST, SMALLEST, 1.5 * 2.0**-126, 2.0**-125]
    codes, scales = mxfp4.quantize(blocks(*[[row] for row in rows]))
    assert scales.flatten().tolist() == [0] * 7
    assert codes[:, 0].tolist() == [2, 1, 0, 9, 0, 5, 6]


def test_the_scale_follows_the_floor_rule_at_its_ends() -> None:
    largest = torch.finfo(torch.float32).max
    rows = [2.0**-124, math.nextafter(2.0**-124, 0), largest, 2.0**127, 7.9, 8.0, 4.0, math.nextafter(4.0, 0)]
    weight = blocks(*[[0.0]] * len(rows)).double()
    weight[:, 0] = torch.tensor(rows, dtype=torch.float64)
    codes, scales = mxfp4.quantize(weight)
    assert scales.flatten().tolist() == [1, 0, 252, 252, 127, 128, 127, 126]
    assert codes[:, 0].tolist() == [6, 7, 7, 6, 7, 6, 6, 7]


def test_float64_blocks_beyond_the_scales_saturate() -> None:
    weight = torch.tensor([[1e300, -1e300, 1.0], [1e-300, -1e-300, 0.0]], dtype=torch.float64)
    codes, scales = mxfp4.quantize(weight)
    assert scales.tolist() == [[254], [0]]
    assert codes.tolist() == [[7, 15, 0], [0, 8, 0]]


def test_an_infinity_counts_as_two_to_the_128() -> None:
    codes, scales = mxfp4.quantize(blocks([math.inf, -math.inf, 1.0, 2.0**127]))
    assert scales.tolist() == [[253]]
    assert codes[0, :4].tolist() == [7, 15, 0, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_nan_poisons_its_block_alone(dtype: torch.dtype) -> None:
    weight = torch.ones(2, 70, dtype=dtype)
    weight[0, 40] = torch.nan
    codes, scales = mxfp4.quantize(weight)
    assert scales.tolist() == [[125, 255, 125], [125, 125, 125]]
    assert codes[0, 32:64].tolist() == [0] * 32
    values = mxfp4.dequantize(codes, scales)
    assert values[0, 32:64].isnan().all()
    assert values.isnan().sum() == 32


def test_a_short_last_block_has_its_own_scale() -> None:
    weight = torch.cat([torch.full((1, 32), 8.0), torch.full((1, 3), 0.5)], 1)
    codes, scales = mxfp4.quantize(weight)
    assert scales.tolist() == [[128, 124]]
    assert codes.tolist() == [[6] * 35]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agrees_with_torchao_bit_for_bit(dtype: torch.dtype) -> None:
    to_mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor").to_mx
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 256, generator=generator)
    # every exponent that a float32 block maximum can have from 2^-124 on
    weight = weight.clamp(-4, 4) * torch.exp2(torch.linspace(-122, 125, 512).round())[:, None]
    weight[::7, ::5] = 0.0
    weight[::3, 1::9] = -0.0
    weight[3] = torch.tensor([value for value, _ in TIES] + [4.0]).repeat(32) * 2.0**-3
    weight[4], weight[5] = -weight[3], 0.0
    weight[6, :64] = torch.nan
    weight[7, 100] = torch.inf
    weight = weight.to(dtype)
    # where a whole block fell below 2^-124 the peer halves it
    absmax = weight.unflatten(1, (-1, 32)).abs().amax(2)
    kept = (absmax >= 2.0**-124) | (absmax == 0) | absmax.isnan()
    assert kept.float().mean() > 0.99

    scales, data = to_mx(weight.contiguous(), torch.float4_e2m1fn_x2, 32)
    codes_ours, scales_ours = mxfp4.quantize(weight)
    assert torch.equal(scales.view(torch.uint8)[kept], scales_ours[kept])
    pairs = data.view(torch.uint8)
    codes = torch.stack([pairs & 15, pairs >> 4], 2).flatten(1)
    compared = (kept & ~absmax.isnan())[:, :, None].expand(-1, -1, 32).flatten(1)
    assert torch.equal(codes[compared], codes_ours[compared])
    assert (codes_ours[compared] == 8).sum() > 1000


def ceil_rule(absmax: float) -> int:
    return math.ceil(math.log2(absmax)) - 2 + 127


def sixth_rule(absmax: float) -> int:
    return math.floor(math.log2(absmax / 6)) + 127


@pytest.mark.parametrize("mutant", [ceil_rule, sixth_rule])
def test_other_scale_rules_are_told_apart(mutant) -> None:
    """The two rules most often found instead of the floor rule give other scales on these maxima."""
    maxima = [4.5, 5.0, 5.9, 6.0, 6.1, 7.0, 7.9]
    weight = blocks(*[[value, 1.0] for value in maxima])
    _, scales = mxfp4.quantize(weight)
    assert scales.flatten().tolist() == [127] * len(maxima)
    assert any(mutant(value) != 127 for value in maxima)
    _, expected = reference.quantize(weight)
    assert any(mutant(value) != int(expected[row]) for row, value in enumerate(maxima))


def test_ties_away_from_zero_are_told_apart() -> None:
    values = torch.tensor([[4.0] + [tie for tie, _ in TIES]])
    ours = mxfp4.dequantize(*mxfp4.quantize(values))[0, 1:]
    away = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    assert ours.tolist() == [float(value) for _, value in TIES]
    assert (ours != away).sum() == 4
