"""Repeating dense and quantised matrices: codes equal, scales equal up to the power of two."""

import pytest
import torch

from qspec_decode.demo import widen
from qspec_decode.prepare import quantise
from qspec_kernels import UsageError, formats


@pytest.mark.parametrize("format", ["int4", "int4_tiles16", "mxfp4", "mxfp4_tiles16"])
@pytest.mark.parametrize(("out_tile", "in_tile"), [(1, 1), (2, 4), (4, 2), (1, 8), (3, 1)])
def test_codes_are_equal_and_scales_up_to_the_power_of_two(format: str, out_tile: int, in_tile: int) -> None:
    weight = torch.randn(24, 96)
    packed = formats.convert(quantise(weight, formats.canonical(format), 32), format)
    wide = widen.widen_packed(packed, out_tile, in_tile)
    assert wide.format == format
    assert wide.shape == (24 * out_tile, 96 * in_tile)
    codes, scales = formats.get(format).unpack(packed)
    wide_codes, wide_scales = formats.get(format).unpack(wide)
    assert torch.equal(wide_codes, codes.repeat(out_tile, in_tile))
    repeated = scales.repeat(out_tile, in_tile)
    if scales.dtype == torch.float16:
        assert torch.equal(wide_scales.double() * in_tile, repeated.double())
    else:
        assert torch.equal(wide_scales.int() + in_tile.bit_length() - 1, repeated.int())
    expected = widen.widen_dense(formats.dequantize(packed), out_tile, in_tile)
    assert torch.equal(formats.dequantize(wide), expected)


def test_fused_parts_are_repeated_each_for_itself() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    wide = widen.widen_dense(weight, 2, 1, parts=(2, 1))
    assert wide[:, 0].tolist() == [1, 3, 1, 3, 5, 5]
    halved = widen.widen_dense(weight, 1, 2)
    assert halved[0].tolist() == [0.5, 1.0, 0.5, 1.0]
    packed = quantise(weight, "int4", 2)
    rows = formats.dequantize(widen.widen_packed(packed, 2, 1, parts=(2, 1)))
    assert torch.equal(rows, formats.dequantize(packed)[[0, 1, 0, 1, 2, 2]])


def test_scales_that_cannot_be_divided_exactly_are_refused() -> None:
    tiny = quantise(torch.full((1, 32), 7 * 3 * 2.0**-24), "int4", 32)
    assert float(widen.widen_packed(tiny, 1, 1).scales) == 3 * 2.0**-24
    with pytest.raises(UsageError, match=r"int4 scales down to 1.79e-07 cannot be divided by 2"):
        widen.widen_packed(tiny, 1, 2)
    for value in (2.0**-125, 2.0**-127):
        with pytest.raises(UsageError, match="cannot be divided by 4"):
            widen.widen_packed(quantise(torch.full((1, 32), value), "mxfp4"), 1, 4)
    with pytest.raises(UsageError, match="40 input features in groups of 32: the last group is shorter"):
        widen.widen_packed(quantise(torch.ones(2, 40), "mxfp4"), 1, 2)


def test_zeros_and_nan_are_widened() -> None:
    weight = torch.zeros(2, 64)
    weight[0, :32], weight[1, 40] = 1.0, torch.nan
    for name in ("int4", "mxfp4"):
        wide = formats.dequantize(widen.widen_packed(quantise(weight, name, 32), 1, 4))
        expected = widen.widen_dense(formats.dequantize(quantise(weight, name, 32)), 1, 4)
        torch.testing.assert_close(wide, expected, rtol=0, atol=0, equal_nan=True)
