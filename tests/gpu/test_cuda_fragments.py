"""Fragments of the emulated matrix instructions against CuTe's description of the same instructions.

The strides are those of `MMA_Traits<SM80_16x8x32_S32S8S8S32_TN>`, `<SM80_16x8x64_S32S4S4S32_TN>` and
`<SM80_16x8x16_F32BF16BF16F32_TN>` in NVIDIA's cute/atom/mma_traits_sm80.hpp: a layout maps (thread, value) to
the coordinate of an element, counted column by column; its modes are (size, stride), the first fastest.
"""

import ctypes
from math import prod

import pytest

from tests.gpu.emulation.cases import LAUNCHERS, emulated

Modes = list[tuple[int, int]]

# instruction -> elements of a register, and for each operand its number of rows, threads and values
CUTE: dict[str, tuple[int, dict[str, tuple[int, Modes, Modes]]]] = {
    "m16n8k32.s8": (
        4,
        {
            "a": (16, [(4, 64), (8, 1)], [(4, 16), (2, 8), (2, 256)]),
            "b": (8, [(4, 32), (8, 1)], [(4, 8), (2, 128)]),
            "c": (16, [(4, 32), (8, 1)], [(2, 16), (2, 8)]),
        },
    ),
    "m16n8k64.s4": (
        8,
        {
            "a": (16, [(4, 128), (8, 1)], [(8, 16), (2, 8), (2, 512)]),
            "b": (8, [(4, 64), (8, 1)], [(8, 8), (2, 256)]),
            "c": (16, [(4, 32), (8, 1)], [(2, 16), (2, 8)]),
        },
    ),
    "m16n8k16.bf16": (
        2,
        {
            "a": (16, [(4, 32), (8, 1)], [(2, 16), (2, 8), (2, 128)]),
            "b": (8, [(4, 16), (8, 1)], [(2, 8), (2, 64)]),
            "c": (16, [(4, 32), (8, 1)], [(2, 16), (2, 8)]),
        },
    ),
}


def offset(modes: Modes, index: int) -> int:
    """The layout's value at an index into its modes."""
    at = 0
    for size, stride in modes:
        index, digit = divmod(index, size)
        at += digit * stride
    return at


@pytest.mark.parametrize("instruction", CUTE)
@pytest.mark.parametrize("operand", ["a", "b", "c"])
def test_fragments(instruction, operand):
    per, operands = CUTE[instruction]
    rows, threads, values = operands[operand]
    with emulated() as emulator:
        library = emulator.library(LAUNCHERS["linear_w4a8"].kernels(1, 16, 64, 32, 80)[0])
    at, seen = (ctypes.c_int * 2)(), set()
    for lane in range(32):
        for i in range(prod(size for size, _ in values)):
            library.fragment(ctypes.c_char(operand.encode()), lane, i, per, at)
            column, row = divmod(offset(threads, lane) + offset(values, i), rows)
            # CuTe's B is [n, k]; an instruction's is [k, n]
            expected = (column, row) if operand == "b" else (row, column)
            assert tuple(at) == expected, (lane, i)
            seen.add(expected)
    assert len(seen) == 32 * prod(size for size, _ in values)
