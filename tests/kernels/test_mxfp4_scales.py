"""Linears where a scale of MXFP4 is out of the ordinary: NaN, the least one, or far from all others."""

import pytest
import torch
from torch.nn import functional as F

import qspec_kernels as qk
from qspec_kernels import formats
from reference.linear import integer_linear
from reference.linear import linear as exact_linear
from tests.kernels.cases import assert_within_budget, quantized, same_bits

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("act", ["a16", "a8"])
def test_nan_scale_of_mxfp4(backend, act):
    mxfp4 = formats.get("mxfp4")
    scales = torch.tensor([[127, 255], [127, 127]], dtype=torch.uint8)
    packed = mxfp4.pack(torch.ones(2, 64, dtype=torch.uint8), scales, 32)
    out = qk.linear(torch.ones(3, 64), qk.to_device_layout(packed), act=act)
    assert out[:, 0].isnan().all()
    assert (out[:, 1] == 32).all()
    zeros = mxfp4.pack(torch.zeros(2, 64, dtype=torch.uint8), scales, 32)
    out = qk.linear(torch.ones(3, 64), qk.to_device_layout(zeros), act=act)
    assert out[:, 0].isnan().all()
    assert (out[:, 1] == 0).all()


@pytest.mark.parametrize("m", [1, 17])
def test_products_near_the_least_floats(backend, rng, m):
    # where an instruction that takes subnormal floats for 0 must not see what is that small
    weight = quantized("mxfp4", torch.randn(20, 96, generator=rng) * 2.0**-121, 32)
    x = torch.randn(m, 96, generator=rng).bfloat16()
    expected = exact_linear(x, weight.values)
    error = (qk.linear(x.float(), weight.packed) - expected).abs().max()
    assert error < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("m", [1, 6, 17])
@pytest.mark.parametrize("act", ["a16", "a8"])
def test_least_scales_of_mxfp4(backend, rng, act, m):
    check_least_scales(rng, act, m)


def check_least_scales(rng, act, m):
    # scale bytes 0 to 3, and 0 is that of zeros, too; x lifts the products to where floats are normal
    n, k = 40, 320
    exponents = torch.randint(-128, -123, (n, k // 32), generator=rng)
    blocks = 2.0 ** exponents.double() * (torch.rand(exponents.shape, generator=rng) < 0.7)
    scattered = torch.randn(n, k, generator=rng).double() * blocks.repeat_interleave(32, 1)
    weight = quantized("mxfp4", scattered.float(), 32)
    x = torch.randn(m, k, generator=rng) * 2.0**100
    if act == "a16":
        rounded = x.bfloat16()
        out, low = qk.linear(rounded.float(), weight.packed), F.linear(rounded.float(), weight.values.float())
        assert_within_budget(out, exact_linear(rounded, weight.values), low)
    else:
        activation = qk.quantize_act(x)
        operands = (activation.codes, activation.scales, weight.integers, weight.scales, 32)
        assert same_bits(qk.linear(activation, weight.packed), integer_linear(*operands, dtype=torch.float32))


@pytest.mark.parametrize("m", [1, 6, 17, 70, 300])
def test_one_scale_of_mxfp4_changes_no_other_row(backend, rng, m):
    check_wide_scales(rng, m)


def check_wide_scales(rng, m):
    # far from 1, where a kernel may do without the scale as a factor; some of zeros, which have the least one
    n, k = 100, 352
    dense = torch.randn(n, k, generator=rng)
    for row, group, exponent in ((20, 2, -80), (50, 0, 70), (51, 1, -64), (99, 10, 64), (7, 5, -60)):
        dense[row, 32 * group : 32 * group + 32] *= 2.0**exponent
    dense[70, 64:96] = dense[71] = 0
    x, residual = torch.randn(m, k, generator=rng), torch.randn(m, n, generator=rng)
    weight = quantized("mxfp4", dense, 32)
    out = qk.linear(x, weight.packed, residual=residual)
    rounded = x.bfloat16()
    low = F.linear(rounded.float(), weight.values.float())
    assert_within_budget(qk.linear(x, weight.packed), exact_linear(rounded, weight.values), low)
    for row in (0, 7, 16, 20, 21, 50, 51, 52, 70, 71, 72, 98, 99):
        alone = qk.linear(x, quantized("mxfp4", dense[row : row + 1], 32).packed)
        assert same_bits(out[:, row], residual[:, row] + alone[:, 0]), row


@pytest.mark.parametrize("act", ["a16", "a8"])
def test_least_scales_catch_numbers_taken_for_zeros(mutate, rng, act):
    def wrong(right, *operands):
        *before, scales = operands[:-5]
        return right(*before, torch.where(scales == 0, 127, scales), *operands[-5:])

    mutate(f"linear_mxfp4{act}", wrong)
    with pytest.raises(AssertionError):
        check_least_scales(rng, act, 6)
