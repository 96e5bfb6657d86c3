"""Fragments of the emulated matrix instructions, and those that kernels take for granted, against CuTe's
description of the same instructions. What the emulated ones answer fragments.cu is in test_cuda_mutants.py.

The strides are those of `MMA_Traits<SM80_16x8x32_S32S8S8S32_TN>`, `<SM80_16x8x64_S32S4S4S32_TN>` and
`<SM80_16x8x16_F32BF16BF16F32_TN>` in NVIDIA's cute/atom/mma_traits_sm80.hpp: a layout maps (thread, value) to
the coordinate of an element, counted column by column; its modes are (size, stride), the first fastest.

Those of ldmatrix are of `Copy_Traits<SM75_U32x4_LDSM_N>` in copy_traits_sm75.hpp: one layout maps the thread
that brings a row's address, and a bit of the row, to a number; the other maps the thread and the bit that it
receives to the number of what it gets.
"""

import ctypes
import re
from itertools import product
from math import prod
from pathlib import Path

import pytest

from qspec_kernels.backends.cuda import _fragments, _launch
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

# threads and bits
LDSM: dict[str, tuple[Modes, Modes]] = {
    "brought": ([(32, 128)], [(128, 1)]),
    "received": ([(32, 32)], [(32, 1), (4, 1024)]),
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


@pytest.mark.parametrize("instruction", CUTE)
def test_what_kernels_take_for_granted(instruction):
    _, operands = CUTE[instruction]
    found = _fragments.coordinates(instruction)
    for operand, names in (("a", "mk"), ("b", "nk"), ("c", "mn")):
        rows, threads, values = operands[operand]
        expected = [
            divmod(offset(threads, lane) + offset(values, i), rows)[::-1]
            for lane, i in product(range(32), range(prod(size for size, _ in values)))
        ]
        assert list(zip(*(found[operand][name].tolist() for name in names), strict=True)) == expected


def differs_from_cute(found: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """The lanes and bits that get something else."""
    (lanes, bits), (to_lanes, to_bits) = LDSM["brought"], LDSM["received"]
    origin = {
        offset(lanes, lane) + offset(bits, bit): (lane, bit) for lane, bit in product(range(32), range(128))
    }
    assert len(origin) == 32 * 128
    wrong = []
    for lane, bit in product(range(32), range(128)):
        source, word = found[lane][bit // 32]
        if origin[offset(to_lanes, lane) + offset(to_bits, bit)] != (source, 32 * word + bit % 32):
            wrong.append((lane, bit))
    return wrong


def test_rows_of_matrices():
    words = _fragments.coordinates("ldmatrix.x4")["d"]
    found = list(zip(words["lane"].tolist(), words["word"].tolist(), strict=True))
    assert not differs_from_cute([found[4 * lane : 4 * lane + 4] for lane in range(32)])
    found[0], found[1] = found[1], found[0]
    assert len(differs_from_cute([found[4 * lane : 4 * lane + 4] for lane in range(32)])) == 2 * 32


def test_every_matrix_instruction_is_asked_about():
    ptx, source = (Path(_launch.__file__).with_name(name).read_text() for name in ("ptx.cuh", "fragments.cu"))
    used = re.findall(r"DEVICE void (mma_\w+|load_matrices)\(", ptx)
    assert len(used) == len(_fragments.INSTRUCTIONS)
    assert all(f"{name}(" in source for name in used)


def test_int4_is_asked_for_where_kernels_use_it():
    everywhere = {*CUTE, "ldmatrix.x4"}
    assert {*_fragments.instructions((8, 9))} == everywhere
    assert {*_fragments.instructions((9, 0))} == everywhere - {"m16n8k64.s4"}
