"""Sums over a vocabulary and the gated rotation have their order from the source: see `test_fixed_order`."""

import pytest

pytest.importorskip("triton")

from qspec_kernels.backends.triton import (
    argmax,
    draw,
    draw_residual,
    hadamard,
    silu_mul_hadamard_quantize_act,
    softmax,
    top2,
)
from tests.gpu.test_fixed_order import first, float_sums, intermediate, matrix_units


@pytest.mark.parametrize(
    ("module", "words", "sums"),
    [
        (argmax, "pieces", 0),
        (top2, "pieces", 0),
        (softmax, "pieces", 11),
        (softmax, "row", 6),
        (draw, "pieces", 11),
        # of the pieces and of their lines; what runs along is added by itself
        (draw, "row", 6 + 6),
        (draw_residual, "pieces", 2 * 11),
        (draw_residual, "row", 2 * 6 + 6),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else None,
)
def test_floats_are_added_in_pairs(module, words, sums):
    text = intermediate(first(module, words, "128256"))
    assert [count for count in float_sums(text) if count > 1] == [2] * sums
    assert "tt.scan" not in text
    assert "atomic" not in text


@pytest.mark.parametrize(("dtype", "width"), [("fp32", 8192), ("fp32", 14336), ("bf16", 14336)])
def test_the_gated_rotation_uses_the_same_matrix_instructions(dtype, width):
    # of the operand in shared memory only a gated one has been written by the kernel itself
    plain, gated = (
        matrix_units(intermediate(first(module, f"{dtype} {width}"), "ttgir").replace(", mutable", ""))
        for module in (hadamard, silu_mul_hadamard_quantize_act)
    )
    assert plain == gated
    assert plain[1]
