"""Fragments of the emulated matrix instructions against CuTe's description of the same instructions.

The strides are those of `MMA_Traits<SM80_16x8x32_S32S8S8S32_TN>`, `<SM80_16x8x64_S32S4S4S32_TN>` and
`<SM80_16x8x16_F32BF16BF16F32_TN>` in NVIDIA's cute/atom/mma_traits_sm80.hpp: a layout maps (thread, value) to
the coordinate of an element, counted column by column; its modes are (size, stride), the first fastest.

Those of ldmatrix are of `Copy_Traits<SM75_U32x4_LDSM_N>` in copy_traits_sm75.hpp: one layout maps the thread
that brings a row's address, and a bit of the row, to a number; the other maps the thread and the bit that it
receives to the number of what it gets.
"""

import ctypes
from itertools import product
from math import prod

import pytest
import torch

from tests.gpu.emulation.cases import LAUNCHERS, Probe, emulated

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

# each lane brings a row of four words, which say whose they are and which; rows lie in no order
PROBE = """
KERNEL(32, 1)
probe(int* out) {
    const int lane = thread_index();
    u32* row = reinterpret_cast<u32*>(shared_memory() + (lane * 7 + 3) % 32 * 16);
    for (int i = 0; i < 4; ++i) row[i] = lane << 8 | i;
    barrier();
    u32 r[4];
    load_matrices(r, row);
    for (int i = 0; i < 4; ++i) store_global(out + lane * 4 + i, static_cast<int>(r[i]));
}
"""


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


def received(**options: list[tuple[str, str]]) -> list[list[tuple[int, int]]]:
    """For each lane and register the lane that brought its word, and which of that lane's row it is."""
    out = torch.empty(32, 4, dtype=torch.int32)
    with emulated(**options) as emulator:
        emulator.launch(Probe("probe", ("ptx.cuh",), (), 32, 512, PROBE), (1, 1), [out])
    return [[divmod(word, 256) for word in row] for row in out.tolist()]


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
    assert not differs_from_cute(received())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("load_matrices(r, row)", "load_matrices(r, shared_memory() + lane * 16)"),
        ("static_cast<int>(r[i])", "static_cast<int>(r[i ^ 1])"),
    ],
)
def test_other_rows_are_noticed(old, new):
    assert differs_from_cute(received(edits=[(old, new)]))
