"""The PTX that expands nibbles, run line by line on every byte, against what the nibbles stand for."""

import re

import pytest
import torch

from qspec_kernels.formats.mxfp4 import LEVELS

expand = pytest.importorskip("qspec_kernels.backends.triton._expand", reason="needs triton")

MASK = 0xFFFFFFFF
# each byte among three others that differ, at each of the four places of a register
WORDS = [
    sum(((byte * step + 37 * place) & 255) << 8 * place for place in range(4))
    for byte in range(256)
    for step in (1, 3, 5, 7)
]


def bf16(bits: int) -> float:
    """The number that 16 bits stand for."""
    return torch.tensor(bits - (bits >> 15 << 16), dtype=torch.int16).view(torch.bfloat16).item()


def prmt(a: int, b: int, selector: int) -> int:
    """PTX ISA, prmt.b32: a nibble of the selector names a byte of {b, a}, or that byte's sign alone."""
    out = 0
    for place in range(4):
        choice = selector >> 4 * place & 15
        byte = (b << 32 | a) >> 8 * (choice & 7) & 255
        out |= ((255 if byte >> 7 else 0) if choice & 8 else byte) << 8 * place
    return out


def fma_bf16x2(a: int, b: int, c: int) -> int:
    """Each half as bfloat16: the product and sum, which here need no rounding."""
    out = 0
    for half in (0, 16):
        x, y, z = (bf16(word >> half & 0xFFFF) for word in (a, b, c))
        exact = torch.tensor(x * y + z, dtype=torch.float64)
        rounded = exact.bfloat16()
        assert rounded.double() == exact
        out |= (rounded.view(torch.int16).item() & 0xFFFF) << half
    return out


OPERATIONS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "add.u32": lambda a, b: a + b & MASK,
    "shl.b32": lambda a, b: a << b & MASK,
    "shr.u32": lambda a, b: a >> b,
    "prmt.b32": prmt,
    "fma.rn.bf16x2": fma_bf16x2,
}


def run(ptx: str, word: int) -> list[int]:
    """The output registers $0, $1, ... of a snippet whose last operand is its input."""
    last = max(int(number) for number in re.findall(r"\$(\d+)", ptx))
    registers = {f"${last}": word}
    for line in ptx.strip().strip("{}").strip().splitlines():
        if line.startswith(".reg"):
            continue
        name, target, *operands = re.findall(r"[^\s,;]+", line)
        values = [registers[o] if o in registers else int(o, 0) for o in operands]
        registers[target] = OPERATIONS[name](*values)
    return [registers[f"${number}"] for number in range(last)]


def expected(word: int, mxfp4: bool) -> tuple[list[float], list[float]]:
    """What a register's low and high nibbles stand for: code, or twice the E2M1 value."""
    nibbles = [[word >> 8 * place + shift & 15 for place in range(4)] for shift in (0, 4)]
    low, high = ([2 * LEVELS[n] if mxfp4 else n - 8.0 for n in row] for row in nibbles)
    return low, high


def check_int8(ptx: str, mxfp4: bool) -> None:
    for word in WORDS:
        out = run(ptx, word)
        for register, numbers in zip(out, expected(word, mxfp4), strict=True):
            signed = [(register >> 8 * place & 255 ^ 128) - 128 for place in range(4)]
            assert signed == numbers, hex(word)


def check_bf16(ptx: str, mxfp4: bool) -> None:
    for word in WORDS:
        out = run(ptx, word)
        # two neighbours a register, low nibbles first
        values = [bf16(register >> half & 0xFFFF) for register in out for half in (0, 16)]
        low, high = expected(word, mxfp4)
        assert values == low + high, hex(word)


CASES = [
    (check_int8, "INT4_TO_INT8", False),
    (check_int8, "MXFP4_TO_INT8", True),
    (check_bf16, "INT4_TO_BF16", False),
    (check_bf16, "MXFP4_TO_BF16", True),
]


@pytest.mark.parametrize(("check", "name", "mxfp4"), CASES)
def test_every_byte(check, name, mxfp4):
    check(getattr(expand, name).value, mxfp4)


@pytest.mark.parametrize(
    ("case", "line", "wrong"),
    [
        (0, "xor.b32 $0, t, 0x80808080", "mov.b32 $0, t"),  # the offset stays
        (1, "prmt.b32 p, a, b, 0x6420", "prmt.b32 p, a, b, 0x7531"),  # high nibbles for low ones
        (2, "prmt.b32 u, t, 0x43434343, 0x4342", "prmt.b32 u, t, 0x43434343, 0x4243"),  # bytes exchanged
        (3, "and.b32 s, p, 0x80008000", "and.b32 s, p, 0x00008000"),  # a sign lost
    ],
)
def test_wrong_lines_are_told_apart(case, line, wrong):
    check, name, mxfp4 = CASES[case]
    ptx = getattr(expand, name).value
    assert line in ptx
    with pytest.raises(AssertionError):
        check(ptx.replace(line, wrong), mxfp4)
