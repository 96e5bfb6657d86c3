"""What kernels must know about Triton's interpreter, in which tests run them without a GPU."""

# Triton's language is no typed Python
# pyright: reportAttributeAccessIssue=false

import triton
import triton.language as tl
from triton import knobs

# whether this process interprets kernels: decided by TRITON_INTERPRET=1 when they are imported
INTERPRETED = tl.constexpr(knobs.runtime.interpret)
# what matrix units take as 16 bits; interpreted, float32 with the same numbers
BF16 = tl.constexpr(tl.float32 if INTERPRETED else tl.bfloat16)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """float32 x as float32 or bfloat16, to nearest even, which the interpreter's own conversion is not."""
    if INTERPRETED and DTYPE.primitive_bitwidth == 16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = bits + 0x7FFF + ((bits >> 16) & 1)
        # the carry would turn some NaNs into others, or into zero
        kept = tl.where(x == x, nearest >> 16, (bits >> 16) | 0x40)
        return kept.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)
