"""What kernels over rows share: sums of one fixed order, root mean squares, codes and scales.

A sum's order is a function of the width alone. Triton leaves the order of a reduction to the layout, which
follows from warps, element sizes and alignment; so `row_sum` reduces axes of two, where there is nothing to
choose. That is what makes a fused op equal to the composition of its parts, and a row to itself in any call.
"""

# constants and loops of device code are Triton's own
# pyright: reportGeneralTypeIssues=false

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from qspec_kernels.backends.triton._sizes import next_power_of_2
from qspec_kernels.backends.triton._variants import Variant

# elements of a row that one program holds at a time; wider rows are gone through in pieces
LARGEST = 32768

F32, BF16 = torch.float32, torch.bfloat16
TYPES = {F32: "*fp32", BF16: "*bf16"}


def block_of(width: int) -> int:
    """Elements of a row that are taken at a time."""
    return min(next_power_of_2(width), LARGEST)


def warps_of(elements: int) -> int:
    """Warps of a program with that many elements at a time: at most 16 elements a thread until 16384."""
    # 1024 threads are the most; AMD's warps have 64
    return min(32 if torch.version.hip is None else 16, max(1, elements // 512))


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: Mapping[str, Any], warps: int
) -> None:
    """Run a kernel with each rounding where the source has it."""
    kernel[grid](*arguments, **constants, num_warps=warps, num_stages=2, enable_fp_fusion=False)


def variant(
    name: str, kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], warps: int,
    opcodes: tuple[str, ...] = (),
) -> Variant:  # fmt: skip
    """What such a launch compiles; all tensors begin at multiples of 16 bytes."""
    pointers = tuple(argument for argument, kind in types.items() if kind.startswith("*"))
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    return Variant(
        name=name,
        kernel=kernel,
        signature=signature,
        constexprs=constants,
        divisible=pointers,
        num_warps=warps,
        fp_fusion=False,
        opcodes=opcodes,
    )


@triton.constexpr_function
def log2(n):
    """The logarithm of a power of two."""
    return n.bit_length() - 1


@triton.jit
def row_sum(x):
    """x [R, N] -> [R]: neighbours are added until one number is left."""
    for _ in tl.static_range(log2(x.shape[1])):
        x = tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]), 2)
    return tl.reshape(x, [x.shape[0]])


@triton.jit
def rms(x, eps, K: tl.constexpr, BLOCK: tl.constexpr):
    """x points to rows [R, 1] of K -> 1 / sqrt(mean(x^2) + eps), [R, 1]."""
    column = tl.arange(0, BLOCK)[None, :]
    squares = tl.zeros([x.shape[0], BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        values = tl.load(x + start + column, mask=start + column < K, other=0.0).to(tl.float32)
        squares += values * values
    return tl.rsqrt(row_sum(squares)[:, None] / K + eps)


@triton.jit
def normed(x, scale, gain):
    """What rmsnorm gives for numbers of type x, before they are rounded to it again."""
    return x.to(tl.float32) * scale * gain.to(tl.float32)


@triton.jit
def gated(gate, up):
    """silu(gate) * up, before it is rounded to their type again."""
    gate = gate.to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up.to(tl.float32)


@triton.jit
def magnitudes(x):
    """The bits of |x|, which order as the numbers do, with NaN above all."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def scale_of(largest, clip, TOP: tl.constexpr):
    """The scale of a group from its largest magnitude, as bits."""
    return tl.div_rn(largest.to(tl.float32, bitcast=True) * clip, TOP * 1.0)


@triton.jit
def codes_of(x, scale, TOP: tl.constexpr):
    """rint(x / scale) within -TOP..TOP, int8; 0 where the quotient is NaN or the scale 0."""
    quotient = tl.div_rn(x, tl.broadcast_to(scale, x.shape))
    quotient = tl.where((quotient == quotient) & (scale != 0), quotient, 0.0)
    # behind 1.5 * 2^23 there is no room for fractions: the sum is rounded to even, its low bits are the code
    rounded = tl.minimum(tl.maximum(quotient, -TOP * 1.0), TOP * 1.0) + 12582912.0
    return rounded.to(tl.int32, bitcast=True).to(tl.int8)
