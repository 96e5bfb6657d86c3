"""The order of logits and of their places as one integer, from which `argmax` and `top2` choose."""

# constants and loops of device code are Triton's own
# pyright: reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

# below every key: what is not there
NONE = tl.constexpr(-(2**63))


@triton.jit
def key_of(value, at, n):
    """int64: orders as pairs of a float32 value and its place do, ties to the lowest place; NONE from n on.

    A NaN of either sign is above all numbers.
    """
    # + 0 makes a negative zero positive, for the two are equal
    value = value + 0.0
    bits = value.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ordered = tl.where(value == value, ordered, 0x7FFFFFFF)
    return tl.where(at < n, (ordered.to(tl.int64) << 32) + (0x7FFFFFFF - at), NONE)


@triton.jit
def place_of(key):
    """int64: the place that a key names; -1 where its value is no finite number."""
    bits = key >> 32
    # as they order: from infinity on, and from the one below zero down, it is none
    finite = (bits < 0x7F800000) & (bits > -0x7F800001)
    return tl.where(finite, 0x7FFFFFFF - (key & 0x7FFFFFFF), -1)


@triton.jit
def value_of(key):
    """float32: the value of a key; -inf of NONE."""
    ordered = (key >> 32).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return tl.where(key == NONE, float("-inf"), bits.to(tl.float32, bitcast=True))
