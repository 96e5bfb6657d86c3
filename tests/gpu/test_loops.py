"""Loops are found in machine code, and what touches local memory in the inner ones."""

import pytest

pytest.importorskip("triton")

from qspec_kernels.backends.triton._interpreter import INTERPRETED
from qspec_kernels.backends.triton._variants import Variant
from tests.gpu import build_table
from tests.gpu.loops import inner_loops, instructions


def listing(*lines: str) -> str:
    """What cuobjdump prints for these instructions, 16 bytes each."""
    head = " Function kernel:\n  REG:40 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:432\n"
    return head + "".join(
        f"        /*{16 * i:04x}*/              {line} ;      /* 0x000fe200078e00ff */\n"
        f"                                        /* 0x000fca0000000f00 */\n"
        for i, line in enumerate(lines)
    )


# 0x10 begins the outer loop, 0x30 the inner one
NESTED = (
    "MOV R1, c[0x0][0x28]",
    "LDL R4, [R1]",
    "@P1 EXIT",
    "LDS R2, [R4]",
    "HMMA.16816.F32.BF16 R8, R4, R2, R8",
    "@P0 BRA 0x30",
    "STL [R1], R4",
    "BRA 0x10",
)


def loops(*lines: str) -> list[list[int]]:
    """The numbers of the instructions in each inner loop."""
    found = inner_loops(instructions(listing(*lines)), build_table.MATRIX_UNITS)
    return sorted([one.address // 16 for one in loop] for loop in found)


def swapped(lines: tuple[str, ...], **new: str) -> tuple[str, ...]:
    """Instructions with some replaced, by number: _4="..."."""
    return tuple(new.get(f"_{i}", line) for i, line in enumerate(lines))


def test_instructions_are_read():
    first, second, third, last = instructions(listing(*NESTED[:2], "@!UP2 BRA.U 0x10", "EXIT"))
    assert (first.address, first.opcode, first.stem, first.predicate) == (0, "MOV", "MOV", "")
    assert (second.operands.strip(), second.target, second.goes_on) == ("R4, [R1]", None, True)
    assert (third.address, third.predicate, third.target, third.goes_on) == (32, "@!UP2", 16, True)
    assert not last.goes_on


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (NESTED, [[3, 4, 5]]),
        (NESTED[:5], []),
        # the uniform unit's condition stands among the operands
        (swapped(NESTED, _5="BRA.U UP0, 0x30"), [[3, 4, 5]]),
        # a jump without one leaves no way on: what follows is never reached
        (swapped(NESTED, _5="BRA 0x30"), [[3, 4, 5]]),
        # forward jumps are no loops, a mask is no address, and a call comes back
        (("@P0 BRA 0x20", "NOP", "WARPSYNC 0xffffffff", "CALL.REL.NOINC 0x50", "EXIT", "RET.REL R2 0x0"), []),
        # waiting is a loop; the one around it still is that of the products
        (
            (
                "MOV R1, R2",
                "HMMA.16816.F32 R8, R4, R2, R8",
                "SYNCS R4",
                "@!P0 BRA 0x20",
                "@P1 BRA 0x10",
                "EXIT",
            ),
            [[1, 2, 3, 4], [2, 3]],
        ),
        # what is seldom run stands behind the end and belongs to the loop that it returns to
        (
            ("MOV R1, R2", "@P0 BRA 0x40", "@P1 BRA 0x10", "EXIT", "LDL R4, [R1]", "BRA 0x20"),
            [[1, 2, 4, 5]],
        ),
        # and stands there for two places: no loop, though a jump leads back
        (("@P0 BRA 0x30", "NOP", "EXIT", "LDL R4, [R1]", "BRA 0x10"), []),
    ],
)
def test_loops(lines, expected):
    assert loops(*lines) == expected


@pytest.mark.parametrize("jump", ["BRA 0x75", "@P0 BRA 0x1000", "BRX R4 -0x10", "JMX R4"])
def test_a_jump_that_leads_nowhere_known_is_refused(jump):
    with pytest.raises(ValueError, match="jumps to"):
        loops("MOV R1, R2", jump, "EXIT")


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        (NESTED, 0),
        (swapped(NESTED, _3="LDL R2, [R1]"), 1),
        (swapped(NESTED, _3="@P2 STL.64 [R1+0x8], R2"), 1),
    ],
)
def test_local_memory_counts_where_it_is_touched(lines, count):
    entry = build_table.entry_of(listing(*lines), 0)
    assert entry["opcodes"]["LDL"] + entry["opcodes"]["STL"] == 2 + count
    assert entry["local_in_loops"] == count
    variant = Variant("some", None, {}, {}, opcodes=("HMMA",))
    wrong = [f"{entry['stack']} bytes of local memory"]
    wrong += [f"{count} instructions on local memory in inner loops"] if count else []
    assert list(build_table.faults(variant, entry, entry)) == wrong


@pytest.mark.skipif(bool(INTERPRETED), reason="kernels are interpreted in this process")
def test_registers_that_are_put_aside_in_a_loop_are_found(monkeypatch):
    variant = build_table.variants("linear_bf16", 80)[0]
    right = Variant.options
    # fewer registers than the loop needs
    monkeypatch.setattr(Variant, "options", lambda self: right(self) | {"maxnreg": 32})
    entry = build_table.compile_variant(variant, 80)
    assert entry["stack"] > 0
    assert entry["local_in_loops"] > 0


def test_the_longest_turn_around_matrix_units_counts():
    """Of two loops one behind the other; what waits in a loop of its own does not count."""
    second = ("HMMA.16816.F32.BF16 R8, R4, R2, R8", "IADD R1, R1, 1", "NOP", "@P0 BRA 0x80", "EXIT")
    entry = build_table.entry_of(listing(*NESTED, *second), 0)
    assert entry["loop"] == {"instructions": 3, "opcodes": {"HMMA.16816.F32.BF16": 1}}
    waiting = ("MOV R1, R2", "LDS R2, [R4]", "LDS R3, [R4]", "@P0 BRA 0x10", "EXIT")
    assert build_table.entry_of(listing(*waiting), 0)["loop"]["instructions"] == 0
