"""The numbers of `int4`, against an exhaustive search."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from qspec_kernels.formats import int4
from reference import int4 as reference

CASES = [(1, 1, 128), (3, 31, 32), (2, 128, 128), (5, 129, 128), (64, 416, 64), (7, 200, -1), (1, 40000, 32)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("n", "k", "group_size"), CASES)
def test_equals_the_exhaustive_search(dtype: torch.dtype, n: int, k: int, group_size: int) -> None:
    weight = (torch.randn(n, k) * torch.exp2(torch.randint(-18, 14, (n, 1)))).to(dtype)
    codes, scales = int4.quantize(weight, group_size)
    expected, expected_scales = reference.quantize(weight, k if group_size == -1 else group_size)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(codes, expected)
    values = int4.dequantize(codes, scales, group_size)
    assert torch.equal(
        values.double(), reference.dequantize(codes, scales, k if group_size == -1 else group_size)
    )


@settings(deadline=None)
@given(
    st_numpy.arrays(
        "float32",
        st.tuples(st.integers(1, 3), st.integers(1, 70)),
        elements=st.floats(width=32, allow_infinity=False, allow_nan=False),
    )
)
def test_equals_the_exhaustive_search_on_anything_finite(array) -> None:
    weight = torch.from_numpy(array)
    codes, scales = int4.quantize(weight, 32)
    expected, expected_scales = reference.quantize(weight, 32)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_error_is_at_most_half_a_step(group_size: int) -> None:
    weight = torch.randn(32, 300)
    codes, scales = int4.quantize(weight, group_size)
    group = 300 if group_size == -1 else group_size
    steps = scales.double().repeat_interleave(group, 1)[:, :300]
    error = (reference.dequantize(codes, scales, group) - weight.double()).abs()
    # the fp16 scale may be 2^-11 too small, which at code 7 is 7/2^11 of a step
    assert (error <= steps * (0.5 + 7 / 2**11)).all()
    assert codes.min() >= -7, "the plain rule is symmetric; -8 comes from rounding the scale or a clip alone"


def test_ties_go_to_the_even_code() -> None:
    weight = torch.tensor([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 6.5]])
    codes, scales = int4.quantize(weight, 8)
    assert scales.tolist() == [[1.0]]
    assert codes.tolist() == [[7, 0, 2, 2, 0, -2, -2, 6]]
    away = torch.sign(weight) * torch.floor(weight.abs() + 0.5)
    assert (away != codes).sum() == 5, "the mutant that rounds ties away from zero is told apart"


def test_codes_use_the_rounded_scale() -> None:
    """Dividing by absmax / 7 in place of its fp16 rounding gives other codes somewhere."""
    weight = torch.randn(64, 4096)
    codes, _ = int4.quantize(weight, -1)
    unrounded = (weight / (weight.abs().amax(1, keepdim=True) / 7)).round().to(torch.int8)
    assert not torch.equal(codes, unrounded)


def test_zero_and_vanishing_groups_have_scale_and_codes_zero() -> None:
    weight = torch.zeros(2, 64)
    weight[0, 32:] = 2.0**-26  # / 7 rounds to zero in fp16
    weight[1, 32:] = 7 * 2.0**-24  # exactly the smallest fp16
    codes, scales = int4.quantize(weight, 32)
    assert scales.tolist() == [[0.0, 0.0], [0.0, 2.0**-24]]
    assert torch.count_nonzero(codes[0]) == 0
    assert codes[1, 32:].tolist() == [7] * 32
    assert int4.dequantize(codes, scales, 32).isfinite().all()


def test_huge_groups_saturate() -> None:
    codes, scales = int4.quantize(torch.tensor([[1e30, -1e30, torch.inf, 65504.0]]), 4)
    assert scales.tolist() == [[65504.0]]
    assert codes.tolist() == [[7, -8, 7, 1]]


@pytest.mark.parametrize("clip_search", [False, True])
def test_a_nan_poisons_its_group_alone(clip_search: bool) -> None:
    weight = torch.ones(2, 70)
    weight[0, 40] = torch.nan
    codes, scales = int4.quantize(weight, 32, clip_search=clip_search)
    assert scales.isnan().tolist() == [[False, True, False], [False, False, False]]
    assert codes[0, 32:64].tolist() == [0] * 32
    assert int4.dequantize(codes, scales, 32).isnan().sum() == 32


def test_a_short_last_group_has_its_own_scale() -> None:
    codes, scales = int4.quantize(torch.cat([torch.full((1, 32), 14.0), torch.full((1, 3), 3.5)], 1), 32)
    assert scales.tolist() == [[2.0, 0.5]]
    assert codes.tolist() == [[7] * 35]


def test_clip_search_finds_the_best_ratio_of_each_group() -> None:
    weight = torch.randn(16, 192) ** 3
    codes, scales = int4.quantize(weight, 64, clip_search=True)
    plain_codes, plain_scales = int4.quantize(weight, 64)

    def errors(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        squares = (reference.dequantize(codes, scales, 64) - weight.double()) ** 2
        return squares.unflatten(1, (3, 64)).sum(2)

    candidates = []
    for ratio in int4.CLIP_RATIOS:
        absmax = weight.unflatten(1, (3, 64)).abs().amax(2)
        scale = (absmax * ratio / 7).half()
        divisors = scale.float().repeat_interleave(64, 1)
        candidates.append(errors((weight / divisors).round().clamp(-8, 7), scale))
    best = torch.stack(candidates).amin(0)
    torch.testing.assert_close(errors(codes, scales), best, rtol=1e-5, atol=0)
    assert errors(codes, scales).sum() < 0.9 * errors(plain_codes, plain_scales).sum()
