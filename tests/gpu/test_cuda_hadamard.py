"""hadamard_quantize_act.cu, compiled for the CPU, against the reference and the CPU backend."""

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels.errors import UsageError
from qspec_kernels.hadamard_matrix import factor, hadamard_matrix
from reference.hadamard import hadamard
from tests.gpu.emulation.cases import SCHEDULES, emulated, op
from tests.gpu.emulation.run import EmulationError
from tests.kernels.cases import same_bits

# width of a row, of a rotation, group, dtype: one, two and three passes; matrices of order 12, 20 and 28 with
# and without a power of two; odd widths; groups that do not divide the row
CASES = [
    (1, 1, None, torch.float32),
    (16, 16, None, torch.bfloat16),
    (64, 16, 7, torch.float32),
    (2048, 2048, None, torch.bfloat16),
    (2048, 2048, 32, torch.float32),
    (60, 12, None, torch.float32),
    (1280, 640, 128, torch.bfloat16),
    (21, 1, 4, torch.bfloat16),
    (28, 28, None, torch.float32),
]


def check(width, block, group, dtype, rng):
    """Codes and scales are the CPU's bit for bit, and those of the exact rotation within a rounding."""
    x = torch.randn(3, width, generator=rng).to(dtype)
    x[1] = 0
    base = hadamard_matrix(factor(block)[0])
    bits = 8 if group is None else 4
    size = width if group is None else group
    codes, scales = op("hadamard_quantize_act")(x, base, block, bits, size, 0.9)
    expected = qk.hadamard_quantize_act(x, block=block, bits=bits, group_size=group, clip=0.9)
    assert torch.equal(codes, expected.codes)
    assert same_bits(scales, expected.scales)
    exact = hadamard(x, hadamard_matrix(block))
    # a step of the code's grid where x is clipped, half of one elsewhere, and the roundings of x itself
    spread = scales.repeat_interleave(size, 1)[:, :width].double()
    limit = (2 ** (bits - 1) - 1) * spread
    error = codes.double() * spread - exact.clamp(-limit, limit)
    assert (error.abs() <= spread * 0.5 + exact.abs() * 2**-7 + 1e-6).all()


@pytest.mark.parametrize(("width", "block", "group", "dtype"), CASES)
def test_against_cpu_and_reference(rng, width, block, group, dtype):
    for schedule in SCHEDULES:
        with emulated(**schedule):
            check(width, block, group, dtype, rng)


def test_values_that_are_no_numbers(rng):
    x = torch.randn(4, 64, generator=rng)
    x[0, 3], x[1, 5], x[2] = torch.nan, torch.inf, 1e-44
    base = hadamard_matrix(1)
    with emulated():
        codes, scales = op("hadamard_quantize_act")(x, base, 64, 8, 64, 1.0)
    expected = qk.hadamard_quantize_act(x)
    assert torch.equal(codes, expected.codes)
    assert torch.equal(scales.isnan(), expected.scales.isnan())
    assert same_bits(scales[2:], expected.scales[2:])


def test_rows_that_do_not_fit():
    x = torch.ones(1, 28672)
    with emulated(capability=86), pytest.raises(UsageError, match=r"takes 11\d+ bytes of shared memory"):
        op("hadamard_quantize_act")(x, hadamard_matrix(28), 28672, 8, 28672, 1.0)


MUTANTS = [
    ("v[i + stride] = sub(a, b);", "v[i + stride] = sub(b, a);"),
    ("barrier();  // the next stage reads what others have written", ""),
    ("barrier();  // the rotated row is there", ""),
    ("(g + 1) * GROUP_SIZE < WIDTH ? (g + 1) * GROUP_SIZE : WIDTH", "(g + 1) * GROUP_SIZE"),
    ("(item >> kBefore << (kBefore + bits_of(kPass)))", "(item >> kBefore << kBefore)"),
]


@pytest.mark.parametrize("edit", MUTANTS)
def test_mutants_fail(rng, edit):
    seen = False
    for schedule in SCHEDULES:
        with emulated(edits=[edit], **schedule):
            try:
                check(1280, 640, 96, torch.float32, rng)
            except (AssertionError, EmulationError):
                seen = True
    assert seen
