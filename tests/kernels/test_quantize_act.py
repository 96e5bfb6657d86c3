"""`quantize_act` and `hadamard_quantize_act`: equality with the definition, and with each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import qspec_kernels as qk
from reference.quantize_act import quantize_act as exact_quantize_act
from tests.kernels.cases import same_bits

pytestmark = pytest.mark.usefixtures("poisoned")

FLOAT32 = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
SIMPLE = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.5, 2.5, 3.5, 7.0, 127.0, -127.0, 1e-45, 3e38])
ROWS = st.tuples(st.integers(1, 4), st.integers(1, 70)).flatmap(
    lambda shape: arrays("float32", shape, elements=FLOAT32 | SIMPLE)
)


@given(
    values=ROWS,
    bits=st.sampled_from([8, 4]),
    group=st.sampled_from([None, 1, 32, 64]),
    clip=st.sampled_from([1.0, 0.9, 0.5]),
    narrow=st.booleans(),
)
def test_equals_its_definition(backend, values, bits, group, clip, narrow):
    check_quantize(torch.from_numpy(values), bits, group, clip, narrow)


def check_quantize(x, bits, group, clip, narrow):
    size = min(group or x.shape[1], x.shape[1])
    x = x.bfloat16() if narrow else x
    got = qk.quantize_act(x, bits=bits, group_size=group, clip=clip)
    codes, scales = exact_quantize_act(x.float(), bits, size, clip)
    assert got.bits == bits
    assert got.group_size == size
    assert torch.equal(got.codes, codes)
    # a NaN has many bit patterns; all else is equal bit for bit
    assert same_bits(got.scales.nan_to_num(nan=-1.0), scales.nan_to_num(nan=-1.0))


def test_special_rows(backend):
    x = torch.zeros(5, 40)
    x[1, 3] = torch.nan
    x[2] = 1e-44  # absmax / 127 underflows to zero
    x[3, :3] = torch.tensor([254.0, 3.0, 5.0])  # scale 2: the quotients 1.5 and 2.5 are ties
    x[4, 0], x[4, 1] = torch.inf, 1.0
    got = qk.quantize_act(x)
    assert got.scales[0] == 0
    assert got.scales[1].isnan()
    assert got.scales[2] == 0
    assert got.codes[:3].abs().sum() == 0
    assert got.codes[3, :4].tolist() == [127, 2, 2, 0]
    assert got.codes[4].abs().sum() == 0


FUSED = [(96, None, 8, None), (96, 48, 4, 32), (128, None, 4, None), (260, 52, 4, 64), (11008, None, 8, None)]


@pytest.mark.parametrize(("width", "block", "bits", "group"), FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_equals_the_composition(backend, rng, dtype, width, block, bits, group):
    check_fused(rng, dtype, width, block, bits, group)


def test_fused_in_float64(torch_backend, rng):
    for case in FUSED:
        check_fused(rng, torch.float64, *case)


def check_fused(rng, dtype, width, block, bits, group):
    x = torch.randn(2, 3, width, generator=rng).to(dtype)
    x[0, 1] = 0
    fused = qk.hadamard_quantize_act(x, block=block, bits=bits, group_size=group, clip=0.9)
    parts = qk.quantize_act(qk.hadamard(x, block=block), bits=bits, group_size=group, clip=0.9)
    assert torch.equal(fused.codes, parts.codes)
    assert same_bits(fused.scales, parts.scales)
    assert (fused.bits, fused.group_size, fused.shape) == (parts.bits, parts.group_size, x.shape)


def test_fused_catches_a_missing_cast(mutate, rng):
    def wrong(right, x, *rest):
        return right(x.float(), *rest)

    mutate("hadamard_quantize_act", wrong)
    with pytest.raises(AssertionError):
        check_fused(rng, torch.bfloat16, 96, 48, 8, None)


def _half_up(right, x, bits, group_size, clip):
    _, scales = right(x, bits, group_size, clip)
    spread = scales.repeat_interleave(group_size, 1)[:, : x.shape[1]]
    return torch.floor(x / spread + 0.5).nan_to_num(0.0).to(torch.int8), scales


def _reciprocal(right, x, bits, group_size, clip):
    _, scales = right(x, bits, group_size, clip)
    spread = (1 / scales).repeat_interleave(group_size, 1)[:, : x.shape[1]]
    return torch.round(x * spread).to(torch.int8), scales


def _truncated_top(right, x, bits, group_size, clip):
    return right(x, bits, group_size, clip * 127 / 128)


@pytest.mark.parametrize("wrong", [_half_up, _reciprocal, _truncated_top])
def test_definition_catches(mutate, rng, wrong):
    mutate("quantize_act", wrong)
    # multiples of half a step give ties, and quotients that a product with the reciprocal misses
    x = torch.randint(-254, 255, (64, 64), generator=rng).float()
    x[:, 0] = 254
    x *= torch.rand(64, 1, generator=rng)
    with pytest.raises(AssertionError):
        check_quantize(x, 8, None, 1.0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 6}, "bits is 6; expected 8 or 4"),
        ({"group_size": 0}, "group_size is 0; expected at least 1"),
        ({"clip": 0.0}, "clip is 0.0; expected a number in"),
        ({"clip": float("nan")}, "clip is nan"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(qk.UsageError, match=message) as error:
        qk.quantize_act(torch.ones(2, 8), **arguments)
    assert error.value.hint
