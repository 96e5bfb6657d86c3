"""Rotations of intermediate widths that models have, natively: large base matrices, long rows."""

from typing import Any

import pytest
import torch
from torch import Tensor

import qspec_kernels as qk
from qspec_kernels.hadamard_matrix import factor, hadamard_matrix
from reference.hadamard import hadamard as exact_hadamard
from tests.kernels.cases import same_bits

pytestmark = pytest.mark.usefixtures("poisoned")

# 76 * 64, 76 * 128 and 924 * 32: Qwen's smaller models and Qwen2.5 72B
WIDTHS = [4864, 9728, 29568]


def exact(x: Tensor) -> Tensor:
    """The rotation of whole rows by the two factors of the matrix, one after the other, in float64."""
    m, power = factor(x.shape[1])
    inner = exact_hadamard(x.reshape(-1, power), hadamard_matrix(power))
    turned = exact_hadamard(inner.view(len(x), m, power).mT.reshape(-1, m), hadamard_matrix(m))
    return turned.view(len(x), power, m).mT.reshape(x.shape)


def check(width: int) -> None:
    """The rotation, its inverse, and the ops that it is a part of."""
    gate_up = torch.randn(2, 2 * width, generator=torch.Generator().manual_seed(0))
    x = qk.silu_mul(gate_up)
    y = qk.hadamard(x)
    torch.testing.assert_close(y.double(), exact(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(qk.hadamard(y, transpose=True), x, rtol=1e-4, atol=1e-5)
    quantizations: list[dict[str, Any]] = [{"bits": 8}, {"bits": 4, "group_size": 128}]
    for quantization in quantizations:
        parts = qk.quantize_act(y, **quantization)
        for fused in (
            qk.hadamard_quantize_act(x, **quantization),
            qk.silu_mul_hadamard_quantize_act(gate_up, **quantization),
        ):
            assert torch.equal(fused.codes, parts.codes)
            assert same_bits(fused.scales, parts.scales)


@pytest.mark.parametrize("width", WIDTHS)
def test_rotations(native, width):
    check(width)


def test_the_factors_exchanged_are_noticed(mutate):
    def wrong(right, x, base, transpose, diagonal):
        swapped = x.view(len(x), -1, len(base)).mT.reshape(x.shape)
        return right(swapped, base, transpose, diagonal)

    mutate("hadamard", wrong)
    with pytest.raises(AssertionError, match="not close"):
        check(4864)


def test_a_rotation_of_part_of_the_row_is_noticed(mutate):
    mutate("hadamard_quantize_act", lambda right, x, base, block, *rest: right(x, base, block // 2, *rest))
    with pytest.raises(AssertionError):
        check(4864)
