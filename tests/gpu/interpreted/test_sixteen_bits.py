"""Operands of matrix units in 16 bits: float16 for bfloat16, which the interpreter cannot multiply.

Elsewhere they are float32 here, which holds what no 16 bits would.
"""

import pytest
import torch
import triton
import triton.language as tl

import qspec_kernels as qk
from qspec_kernels.backends.triton import _expand, _hadamard, _packed
from qspec_kernels.hadamard_matrix import hadamard_matrix
from tests.gpu.interpreted.served import served
from tests.gpu.interpreted.test_linear import FLOATS, check_floats
from tests.kernels import test_elementwise as elementwise
from tests.kernels.cases import same_bits

pytestmark = pytest.mark.usefixtures("poisoned")


def in_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_expand, _hadamard, _packed):
        monkeypatch.setattr(module, "BF16", tl.constexpr(tl.float16))


@pytest.fixture
def rotation(monkeypatch):
    in_sixteen_bits(monkeypatch)
    yield from served(monkeypatch)


def check_every_bit(rng: torch.Generator) -> None:
    # one number a row, of 24 bits: all of them come out, times a power of two
    x = torch.diag(1 + torch.rand(64, generator=rng))
    assert same_bits(qk.hadamard(x), x @ hadamard_matrix(64).float().T / 8)


@pytest.mark.usefixtures("rotation")
def test_numbers_are_rotated_in_parts(rng):
    check_every_bit(rng)
    elementwise.check_hadamard(rng, 112, torch.float32)


@triton.jit
def _one_part(signs, x, total):
    return tl.dot(signs.to(tl.float16), x.to(tl.float16), total, input_precision="ieee")


@triton.jit
def _two_parts(signs, x, total):
    part = x.to(tl.float16)
    total = tl.dot(signs.to(tl.float16), part, total, input_precision="ieee")
    return tl.dot(
        signs.to(tl.float16), (x - part.to(tl.float32)).to(tl.float16), total, input_precision="ieee"
    )


@pytest.mark.usefixtures("rotation")
@pytest.mark.parametrize("mutant", [_one_part, _two_parts])
def test_fewer_parts_are_caught(rng, monkeypatch, mutant):
    monkeypatch.setattr(_hadamard, "_product", mutant)
    with pytest.raises(AssertionError):
        check_every_bit(rng)


@pytest.mark.parametrize("kind", FLOATS)
def test_weight_only(rng, kind, monkeypatch):
    in_sixteen_bits(monkeypatch)
    check_floats(rng, (3, 100, 37), kind, 32)


_numbers, _term = _packed.operand, _packed.plus_term
# times a code it has more bits than any 16 hold
_FACTOR = tl.constexpr(1 + 2.0**-12)


@triton.jit
def _scaled_operand(w, MXFP4: tl.constexpr, INTEGER: tl.constexpr, ORDER: tl.constexpr):
    return (_numbers(w, MXFP4, INTEGER, ORDER).to(tl.float32) * _FACTOR).to(_packed.BF16)


@triton.jit
def _term_without_the_factor(acc, sums, scale, act_scale):
    return _term(acc, sums, scale / _FACTOR, act_scale)


def test_codes_that_are_scaled_before_the_product_are_caught(rng, monkeypatch):
    monkeypatch.setattr(_packed, "operand", _scaled_operand)
    monkeypatch.setattr(_packed, "plus_term", _term_without_the_factor)
    # float32 would not show it
    check_floats(rng, (3, 100, 37), "int4", 32)
    in_sixteen_bits(monkeypatch)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_floats(rng, (3, 100, 37), "int4", 32)
