"""Nibbles of a packed weight as tensor-core operands, in registers.

A byte of the `*_mma16` orders holds two codes 16 features apart. Each function takes bytes and returns the
numbers of their low nibbles and of their high nibbles. Four bytes, one register, are expanded at a time by
the PTX beside it; the plain formula is what the interpreter runs and what tests hold the PTX to.
"""

# Triton's language is no typed Python
# pyright: reportArgumentType=false, reportAssignmentType=false

import triton
import triton.language as tl
from triton.language.target_info import is_hip

from qspec_kernels.backends.triton._interpreter import BF16, INTERPRETED

# u = code + 8 in a byte is at most 15: u + 0x78 carries into no neighbour, and flips its top bit where u >= 8
INT4_TO_INT8 = tl.constexpr("""{
.reg .b32 t;
and.b32 t, $2, 0x0F0F0F0F;
add.u32 t, t, 0x78787878;
xor.b32 $0, t, 0x80808080;
shr.u32 t, $2, 4;
and.b32 t, t, 0x0F0F0F0F;
add.u32 t, t, 0x78787878;
xor.b32 $1, t, 0x80808080;
}""")


def _int4_pairs(first: int) -> str:
    """PTX: the four bytes u of t as two registers of bfloat16 codes, from ${first} on."""
    return f"""
prmt.b32 u, t, 0x43434343, 0x4140;
fma.rn.bf16x2 ${first}, u, one, bias;
prmt.b32 u, t, 0x43434343, 0x4342;
fma.rn.bf16x2 ${first + 1}, u, one, bias;"""


# 0x43 above a byte u < 128 is the bfloat16 128 + u; 136 is taken off by one exact fused multiply-add
INT4_TO_BF16 = tl.constexpr(f"""{{
.reg .b32 t, u, one, bias;
mov.b32 one, 0x3F803F80;
mov.b32 bias, 0xC308C308;
and.b32 t, $4, 0x0F0F0F0F;{_int4_pairs(0)}
shr.u32 t, $4, 4;
and.b32 t, t, 0x0F0F0F0F;{_int4_pairs(2)}
}}""")

# Nibbles select bytes of a table of twice the magnitudes. A selector with its top bit set, the sign, repeats
# the byte's sign bit, which is 0 in both tables: so each code finds its number in one table and 0 in the
# other. The second table holds 7 bits of the negative numbers; bit 6 is their sign and is copied up.
MXFP4_TO_INT8 = tl.constexpr("""{
.reg .b32 s, p, q, a, b;
xor.b32 s, $2, 0x88888888;
prmt.b32 p, 0x03020100, 0x0C080604, $2;
prmt.b32 q, 0x7D7E7F00, 0x74787A7C, s;
or.b32 a, p, q;
shr.u32 p, $2, 16;
shr.u32 s, s, 16;
prmt.b32 p, 0x03020100, 0x0C080604, p;
prmt.b32 q, 0x7D7E7F00, 0x74787A7C, s;
or.b32 b, p, q;
prmt.b32 p, a, b, 0x6420;
prmt.b32 q, a, b, 0x7531;
shl.b32 a, p, 1;
and.b32 a, a, 0x80808080;
or.b32 $0, p, a;
shl.b32 b, q, 1;
and.b32 b, b, 0x80808080;
or.b32 $1, q, b;
}""")


def _mxfp4_pair(selector: str, low: int) -> str:
    """PTX: two chosen bytes of $4 as bfloat16, their low nibbles in ${low} and high ones in ${low + 2}."""
    return f"""
prmt.b32 p, $4, 0, {selector};
shl.b32 s, p, 4;
and.b32 s, s, 0x80008000;
shr.u32 e, p, 2;
and.b32 e, e, 0x01C001C0;
or.b32 s, s, e;
fma.rn.bf16x2 ${low}, s, up, zero;
and.b32 s, p, 0x80008000;
shr.u32 e, p, 6;
and.b32 e, e, 0x01C001C0;
or.b32 s, s, e;
fma.rn.bf16x2 ${low + 2}, s, up, zero;"""


# Sign to bit 15, magnitude to bits 8..6, where bfloat16 has the low exponent bits and the first of the
# mantissa: the value times 2^-126, the smallest as a subnormal. Times 2^127 that is twice the value,
# exactly.
MXFP4_TO_BF16 = tl.constexpr(f"""{{
.reg .b32 p, s, e, up, zero;
mov.b32 up, 0x7F007F00;
mov.b32 zero, 0x80008000;{_mxfp4_pair("0x1404", 0)}{_mxfp4_pair("0x3424", 1)}
}}""")

# Twice the magnitudes, a hexadecimal digit each, as an int32. Looked up and not computed: of arithmetic on a
# nibble's bits LLVM makes vectors of 4-bit integers, at which its compiler for AMD's GPUs ends the process.
MAGNITUDES = tl.constexpr(0xC8643210 - (1 << 32))


@triton.jit
def _number(nibble, MXFP4: tl.constexpr):
    """The integer that a nibble stands for: code, or twice the E2M1 value; int32."""
    if MXFP4:
        magnitude = (MAGNITUDES >> (nibble & 7) * 4) & 15
        return tl.where(nibble < 8, magnitude, -magnitude)
    return nibble - 8


@triton.jit
def expand(w, MXFP4: tl.constexpr, INTEGER: tl.constexpr):
    """uint8 -> the numbers of its low and of its high nibbles, as int8 where INTEGER, else as bfloat16."""
    if INTERPRETED or is_hip():
        TYPE: tl.constexpr = tl.int8 if INTEGER else BF16
        low = _number((w & 15).to(tl.int32), MXFP4).to(TYPE)
        high = _number((w >> 4).to(tl.int32), MXFP4).to(TYPE)
    elif INTEGER:
        PTX8: tl.constexpr = MXFP4_TO_INT8 if MXFP4 else INT4_TO_INT8
        low, high = tl.inline_asm_elementwise(PTX8, "=r,=r,r", [w], (tl.int8, tl.int8), True, 4)
    else:
        PTX16: tl.constexpr = MXFP4_TO_BF16 if MXFP4 else INT4_TO_BF16
        low, high = tl.inline_asm_elementwise(
            PTX16, "=r,=r,=r,=r,r", [w], (tl.bfloat16, tl.bfloat16), True, 4
        )
    return low, high
