"""`silu_mul_hadamard_quantize_act`, interpreted: gate, rotation, quantisation, one after another or fused."""

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels.backends.triton import _hadamard, _hadamard_quantize
from qspec_kernels.hadamard_matrix import factor, hadamard_matrix
from reference import hadamard as exact_hadamard
from reference import silu_mul as exact_silu_mul
from tests.gpu.interpreted.served import sequential_dots, served
from tests.kernels import test_fused as fused
from tests.kernels.cases import same_bits
from tests.kernels.test_row_invariance import numbers

# numpy warns of what floating point defines
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def mutate(monkeypatch, poisoned):
    yield from served(monkeypatch)


# fused: whole rows, groups that are powers of two and lie across lines of the tile, the last one shorter;
# composed: other groups, several blocks in a row
@pytest.mark.parametrize(
    ("width", "block", "bits", "group"),
    [(256, None, 8, None), (192, None, 4, 32), (320, None, 4, 128), (192, None, 4, 7), (96, 48, 4, 32)],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_it_equals_the_composition(rng, width, block, bits, group, scaled):
    check(rng, torch.float32, width, block, bits, group, scaled)


@pytest.mark.parametrize("scaled", [False, True])
def test_it_equals_the_composition_of_bfloat16(rng, scaled):
    check(rng, torch.bfloat16, 192, None, 4, 32, scaled)


def check(rng, dtype, width, block, bits, group, scaled):
    x = torch.randn(3, 2 * width, generator=rng).to(dtype)
    x[1] = 0
    diagonal = torch.randn(width, generator=rng) if scaled else None
    kept = {"bits": bits, "group_size": group, "clip": 0.9}
    found = qk.silu_mul_hadamard_quantize_act(x, block=block, diagonal=diagonal, **kept)
    turned = qk.hadamard(qk.silu_mul(x), block=block, diagonal=diagonal)
    assert fused.same_activation(found, qk.quantize_act(turned, **kept))


def test_which_are_one_launch(monkeypatch, rng):
    def refused(*_):
        raise AssertionError("a launch more")

    for op in ("silu_mul", "hadamard", "quantize_rows"):
        monkeypatch.setattr(_hadamard_quantize, op, refused)
    check_values(rng, 192, 8)
    with pytest.raises(AssertionError, match="a launch more"):
        qk.silu_mul_hadamard_quantize_act(torch.ones(1, 192), block=48)


@pytest.mark.parametrize(("width", "bits"), [(40, 8), (256, 8), (192, 4)])
def test_it_is_what_the_reference_gives(rng, width, bits):
    check_values(rng, width, bits)


def check_values(rng, width, bits):
    x, diagonal = torch.randn(3, 2 * width, generator=rng), torch.randn(width, generator=rng)
    found = qk.silu_mul_hadamard_quantize_act(x, diagonal=diagonal, bits=bits)
    matrix = hadamard_matrix(width).double()
    exact = exact_hadamard.hadamard(exact_silu_mul.silu_mul(x.double()) * diagonal.double(), matrix)
    scales = exact.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    torch.testing.assert_close(found.scales.double(), scales, rtol=1e-5, atol=0)
    # half a step, and what float32 is off by
    assert ((found.codes * scales - exact).abs() <= scales * (0.5 + 1e-3)).all()


def test_rows_do_not_depend_on_their_company(rng, monkeypatch):
    sequential_dots(monkeypatch)
    check_rows(rng)


def check_rows(rng):
    x = torch.randn(5, 2 * 192, generator=rng)
    whole = numbers(qk.silu_mul_hadamard_quantize_act(x))
    x[1::2] *= 1e4
    assert same_bits(numbers(qk.silu_mul_hadamard_quantize_act(x))[::2], whole[::2])
    for row in (0, 4):
        assert same_bits(numbers(qk.silu_mul_hadamard_quantize_act(x[row : row + 1])), whole[row : row + 1])


def test_rows_that_several_programs_would_share(rng, monkeypatch):
    monkeypatch.setattr(_hadamard, "_TILE", 64)
    assert _hadamard.plan(344, factor(344)[0]).tiles > 1
    check(rng, torch.float32, 344, None, 8, None, True)


MUTANTS = {
    "gate and up exchanged": lambda right, x, *rest: right(x.roll(x.shape[1] // 2, 1), *rest),
    "no diagonal": lambda right, x, base, diagonal, *rest: right(x, base, None, *rest),
    "another clip": lambda right, *rest: right(*rest[:-1], rest[-1] * 127 / 128),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_checks_catch(mutate, rng, name):
    mutate("silu_mul_hadamard_quantize_act", MUTANTS[name])
    with pytest.raises(AssertionError):
        check(rng, torch.float32, 256, None, 8, None, True)
    with pytest.raises(AssertionError):
        check_values(rng, 40, 8)


def test_unrounded_gates_are_noticed(mutate, rng):
    mutate("silu_mul_hadamard_quantize_act", lambda right, x, *rest: right(x.float(), *rest))
    with pytest.raises(AssertionError):
        check(rng, torch.bfloat16, 192, None, 4, 32, False)


def _one_scale(right, x, base, diagonal, block, bits, group_size, clip):
    codes, scales = right(x, base, diagonal, block, bits, group_size, clip)
    return codes, scales.amax().expand_as(scales).contiguous()


def test_a_scale_of_all_rows_is_noticed(mutate, rng, monkeypatch):
    sequential_dots(monkeypatch)
    mutate("silu_mul_hadamard_quantize_act", _one_scale)
    with pytest.raises(AssertionError):
        check_rows(rng)
