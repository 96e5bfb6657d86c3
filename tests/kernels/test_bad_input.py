"""Inputs that would reach a native kernel's raw pointers are refused, or made fit, on every path."""

import pytest
import torch

from qspec_kernels import (
    FormatError,
    PackedWeight,
    QuantizedActivation,
    UsageError,
    cache_write,
    formats,
    linear,
    quantize_act,
    rmsnorm,
    rope,
    silu_mul,
    to_device_layout,
)
from qspec_kernels.formats import int4


def packed(n: int = 32, k: int = 128) -> PackedWeight:
    return to_device_layout(int4.pack(*int4.quantize(torch.randn(n, k), 32), 32))


def test_groups_that_the_tiles_cannot_hold_are_refused(backend: str) -> None:
    weight = int4.pack(*int4.quantize(torch.randn(16, 64), 20), 20)
    with pytest.raises(FormatError, match="group_size is 20; expected a multiple of 8"):
        formats.convert(weight, "int4_tiles16")


@pytest.mark.parametrize("group_size", [8, 24, 40, -1])
def test_odd_groups_that_they_can_hold_are_right(backend: str, group_size: int) -> None:
    codes, scales = int4.quantize(torch.randn(16, 100), group_size)
    weight = to_device_layout(int4.pack(codes, scales, group_size))
    x = torch.randn(3, 100)
    exact = x.bfloat16().double() @ int4.dequantize(codes, scales, group_size).double().T
    torch.testing.assert_close(linear(x, weight).double(), exact, rtol=1e-4, atol=1e-4)


def test_packed_weights_that_contradict_their_shape_are_refused() -> None:
    good = packed()
    for data, scales, shape in (
        (good.data[:1].contiguous(), good.scales, (64, 128)),
        (good.data, good.scales, (8, 64)),
        (good.data, good.scales.float(), good.shape),
        (good.data.transpose(0, 1), good.scales, good.shape),
    ):
        with pytest.raises(FormatError, match="cannot have"):
            PackedWeight(data, scales, good.format, shape, good.group_size)
    with pytest.raises(FormatError, match="expected each at least 1") as error:
        PackedWeight(good.data, good.scales, good.format, good.shape, 0)
    assert "pack" in error.value.hint
    # the scales of a smaller group size are too many
    with pytest.raises(FormatError, match="group size 64, cannot have"):
        PackedWeight(good.data, good.scales, good.format, good.shape, 64)


def test_activations_that_contradict_themselves_are_refused(backend: str) -> None:
    weight, x = packed(), quantize_act(torch.randn(3, 128))
    for codes, scales in ((x.codes.int(), x.scales), (x.codes, x.scales[:2])):
        with pytest.raises(UsageError, match="expected int8 codes"):
            linear(QuantizedActivation(codes, scales, 8, 128), weight)


def test_cache_write_takes_one_floating_dtype(untyped: None, backend: str) -> None:
    k_cache, v_cache = torch.zeros(2, 1, 2, 8, 4).unbind()
    k, at = torch.ones(1, 2, 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(UsageError, match=r"k is torch.float32 and v is torch.bfloat16"):
        cache_write(k_cache, v_cache, k, k.bfloat16(), at, at)
    with pytest.raises(UsageError, match=r"k is torch.float16"):
        cache_write(k_cache, v_cache, k.half(), k.half(), at, at)


def test_rope_reads_strided_positions_and_refuses_what_it_cannot_read(untyped: None, backend: str) -> None:
    x, inv_freq = torch.randn(3, 2, 8), torch.rand(4)
    positions = torch.arange(6, dtype=torch.int32)
    assert torch.equal(rope(x, positions[::2], inv_freq), rope(x, positions[::2].clone(), inv_freq))
    with pytest.raises(UsageError, match=r"inv_freq is torch.bfloat16"):
        rope(x, positions[:3], inv_freq.bfloat16())
    with pytest.raises(UsageError, match="x has 7 features a head"):
        rope(x[..., :7], positions[:3], inv_freq[:3])


def test_no_rows_give_no_rows(backend: str) -> None:
    x = torch.zeros(0, 64)
    assert rmsnorm(x, torch.ones(64), 1e-5).shape == (0, 64)
    assert silu_mul(x).shape == (0, 32)
    assert quantize_act(x).codes.shape == (0, 64)
    assert linear(x, torch.randn(5, 64)).shape == (0, 5)


def test_no_features_are_refused(untyped: None, backend: str) -> None:
    with pytest.raises(UsageError, match="at least one feature"):
        linear(torch.zeros(2, 0), torch.zeros(3, 0))
    with pytest.raises(UsageError, match="out_features, in_features"):
        linear(torch.zeros(2, 4), torch.zeros(4))
