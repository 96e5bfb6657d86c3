"""The rotation, alone and with quantisation behind it, interpreted."""

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels.backends.triton import _hadamard
from qspec_kernels.hadamard_matrix import factor, hadamard_matrix
from tests.gpu.interpreted.served import sequential_dots, served
from tests.kernels import test_elementwise as elementwise
from tests.kernels import test_quantize_act as quantization
from tests.kernels.cases import same_bits
from tests.kernels.test_row_invariance import numbers

# numpy warns of what floating point defines
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def mutate(monkeypatch, poisoned):
    yield from served(monkeypatch)


# Sylvester's alone; a base matrix alone, with butterflies, with a Sylvester factor as well (12 x 2 x 64)
@pytest.mark.parametrize("width", [1, 2, 8, 64, 512, 12, 24, 40, 52, 112, 344, 1536])
def test_hadamard(rng, width):
    elementwise.check_hadamard(rng, width, torch.float32)


@pytest.mark.parametrize("width", [8, 112])
def test_hadamard_of_bfloat16(rng, width):
    elementwise.check_hadamard(rng, width, torch.bfloat16)


@pytest.mark.parametrize("width", [344, 2048])
def test_rows_that_several_programs_share(rng, width, monkeypatch):
    monkeypatch.setattr(_hadamard, "_TILE", 64)
    assert _hadamard.plan(width, factor(width)[0]).tiles > 1
    elementwise.check_hadamard(rng, width, torch.float32)
    check_fused(rng, torch.float32, width, None, 8, None)


@pytest.mark.parametrize(("width", "block"), [(64, 64), (60, 20), (36, 36)])
def test_diagonal(rng, width, block):
    x, diagonal = torch.randn(5, width, generator=rng), torch.randn(width, generator=rng)
    turned = qk.hadamard(x, block=block, diagonal=diagonal)
    torch.testing.assert_close(turned, qk.hadamard(x * diagonal, block=block), rtol=0, atol=0)
    back = qk.hadamard(x, block=block, transpose=True, diagonal=diagonal)
    torch.testing.assert_close(back, qk.hadamard(x, block=block, transpose=True) * diagonal, rtol=0, atol=0)


# fused: whole rows, groups that are powers of two and lie across lines of the tile, the last one shorter;
# composed: other groups, several blocks in a row
@pytest.mark.parametrize(
    ("width", "block", "bits", "group"),
    [
        (256, None, 8, None),
        (192, None, 4, 32),
        (192, None, 4, 128),
        (320, None, 4, 64),
        (256, None, 4, 7),
        (96, 48, 4, 32),
    ],
)
def test_fused_equals_the_composition(rng, width, block, bits, group):
    check_fused(rng, torch.float32, width, block, bits, group)


def test_fused_of_bfloat16(rng):
    check_fused(rng, torch.bfloat16, 192, None, 4, 32)


def check_fused(rng, dtype, width, block, bits, group):
    quantization.check_fused(rng, dtype, width, block, bits, group)


def test_the_real_widths_are_fused():
    for width in (4096, 8192, 11008, 14336):
        cut = _hadamard.plan(width, factor(width)[0])
        assert (cut.tiles, cut.ROWS, cut.M * cut.Q * cut.P) == (1, 1, width)


@pytest.mark.parametrize("width", [12, 40, 256])
def test_rows_do_not_depend_on_their_company(rng, width, monkeypatch):
    sequential_dots(monkeypatch)
    x = torch.randn(9, width, generator=rng)
    for op in (qk.hadamard, lambda x: numbers(qk.hadamard_quantize_act(x))):
        whole = op(x)
        loud = x.clone()
        loud[1::2] *= 1e4
        assert same_bits(op(loud)[::2], whole[::2])
        for row in (0, 4, 8):
            assert same_bits(op(x[row : row + 1]), whole[row : row + 1])


def test_units_become_the_matrix():
    for width in (24, 128):
        out = qk.hadamard(torch.eye(width)) * width**0.5
        torch.testing.assert_close(out, hadamard_matrix(width).float().T, rtol=1e-6, atol=1e-6)


def test_the_checks_catch_a_matrix_taken_for_symmetric(mutate, rng):
    mutate("hadamard", lambda right, x, base, transpose, d: right(x, base.t().contiguous(), transpose, d))
    with pytest.raises(AssertionError, match="exceeds the budget"):
        elementwise.check_hadamard(rng, 40, torch.float32)


def test_the_checks_catch_another_clip(mutate, rng):
    mutate("hadamard_quantize_act", lambda right, *rest: right(*rest[:-1], rest[-1] * 127 / 128))
    with pytest.raises(AssertionError):
        check_fused(rng, torch.float32, 256, None, 8, None)
