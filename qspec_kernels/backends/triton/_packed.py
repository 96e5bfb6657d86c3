"""The kernel of all linears with packed weights: out[m, n] = sum over groups of (codes . x) * scales.

A program makes a tile of BLOCK_N output features by BLOCK_M tokens, and weights are the matrix unit's left
operand: 16 features fill its rows whatever M is, so that one kernel serves one token and thousands. A warp
loads a tile of 16 features by 64 of K with 16 bytes a lane, which land where the matrix unit wants them:
nothing is shuffled between registers. Read per program: BLOCK_N * K / 2 bytes of weights, BLOCK_M * K of x.

What a token's row goes through does not depend on M: dots of 64 along K (32 for groups of 32) are added up
inside a group, groups in order inside a split, splits in order. Splits of K are programs of their own where
there are few tiles, and `add_splits` adds what they leave; where tiles abound a program takes the splits one
by one, and the same sums come out.
"""

# Triton's language is no typed Python
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from qspec_kernels.backends.triton._epilogue import store
from qspec_kernels.backends.triton._expand import expand
from qspec_kernels.backends.triton._interpreter import BF16, rounded

# in which order a dot of 64 takes the features: what spares the matrix unit's left operand any move is
# decided by how the compiler lays out an operand made of bytes
NATURAL, PAIRS, OCTETS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def columns(COUNT: tl.constexpr, ORDER: tl.constexpr):
    """Which of COUNT consecutive features stands where in a dot; features 32 c + 16 s + 4 t + 2 p + q."""
    i = tl.arange(0, COUNT)
    if ORDER == PAIRS:  # c, s, p, t, q
        i = i // 16 * 16 + i % 8 // 2 * 4 + i // 8 % 2 * 2 + i % 2
        return tl.max_contiguous(tl.multiple_of(i, 2), 2)
    if ORDER == OCTETS:  # c, t, s, p, q
        i = i // 32 * 32 + i // 4 % 2 * 16 + i // 8 % 4 * 4 + i % 4
        return tl.max_contiguous(tl.multiple_of(i, 4), 4)
    return i


@triton.jit
def operand(w, MXFP4: tl.constexpr, INTEGER: tl.constexpr, ORDER: tl.constexpr):
    """Bytes [tiles, 512] -> numbers [16 tiles, 64], columns in ORDER; or half as many of both.

    A byte's place is (g, t, c, h, p, q), as the `*_mma16` formats have it with b = 2 p + q; its two nibbles
    are s. Half a tile lacks c.
    """
    TILES: tl.constexpr = w.shape[0]
    HALVES: tl.constexpr = w.shape[1] // 256
    low, high = expand(w, MXFP4, INTEGER)
    numbers = tl.reshape(tl.join(low, high), (TILES, 8, 4, HALVES, 2, 2, 2, 2))
    # rows are (tile, h, g)
    if ORDER == PAIRS:
        numbers = tl.permute(numbers, (0, 4, 1, 3, 7, 5, 2, 6))
    elif ORDER == OCTETS:
        numbers = tl.permute(numbers, (0, 4, 1, 3, 2, 7, 5, 6))
    else:
        numbers = tl.permute(numbers, (0, 4, 1, 3, 7, 2, 5, 6))
    return tl.reshape(numbers, (TILES * 16, 32 * HALVES))


@triton.jit
def weight_scale(word, row, MXFP4: tl.constexpr):
    """float32: a row's fp16 scale, or 2^(E - 128), NaN for 255, from a word of neighbouring rows."""
    if MXFP4:
        e = (word >> row % 4 * 8) & 255
        # 2^-128 and 2^-127 are subnormal
        bits = tl.where(e > 1, (e - 1) << 23, 0x200000 << (e & 1))
        return tl.where(e == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)
    return (word >> row % 2 * 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def plus_term(acc, sums, scale, act_scale):
    """acc plus the sums of a group times its scales; every backend rounds the integers' terms like this."""
    scale = scale[:, None]
    if act_scale is not None:
        return acc + sums.to(tl.float32) * (scale * act_scale[None, :])
    return tl.fma(sums, tl.broadcast_to(scale, sums.shape), acc)


@triton.jit
def _sum_of_groups(
    x_ptrs, w_ptrs, scale_ptrs, act_ptrs, cols, row, first, last, k, n16, GROUP: tl.constexpr,
    MXFP4: tl.constexpr, INTEGER: tl.constexpr, ORDER: tl.constexpr, EVEN: tl.constexpr,
    GROUPED_ACT: tl.constexpr, EVICT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """float32 [features, tokens]: the groups `first` to `last`, or those blocks of 64 where a row is one
    group (GROUP 0) and where a block is two (GROUP 32)."""
    SUM: tl.constexpr = tl.int32 if INTEGER else tl.float32
    BLOCKS: tl.constexpr = GROUP // 64 if GROUP > 64 else 1
    BLOCK_N: tl.constexpr = scale_ptrs.shape[0]
    BLOCK_M: tl.constexpr = x_ptrs.shape[1]
    blocks = tl.cdiv(k, 64)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    row_sums = tl.zeros((BLOCK_N, BLOCK_M), SUM)
    row_words = n16 // (4 if MXFP4 else 2)
    act_scale = None
    if INTEGER and not GROUPED_ACT:
        act_scale = tl.load(act_ptrs)
    # with its own number of stages the loop reads everything ahead, scales too
    for unit in tl.range(first, last, num_stages=STAGES):
        sums = tl.zeros((BLOCK_N, BLOCK_M), SUM)
        for i in tl.static_range(BLOCKS):
            block = unit * BLOCKS + i
            if EVEN:
                w = tl.load(w_ptrs + block * 512, eviction_policy=EVICT)
            else:
                w = tl.load(w_ptrs + block * 512, mask=block < blocks, other=0)
            if GROUP == 32:
                # two dots, each the sum of a group
                halves = tl.split(tl.permute(tl.reshape(w, (BLOCK_N // 16, 32, 2, 8)), (0, 1, 3, 2)))
                for half in tl.static_range(2):
                    start = block * 64 + half * 32
                    x = activations(x_ptrs + start, cols + start, k, INTEGER, EVEN)
                    numbers = operand(tl.reshape(halves[half], (BLOCK_N // 16, 256)), MXFP4, INTEGER, ORDER)
                    sums = tl.dot(numbers, x, tl.zeros((BLOCK_N, BLOCK_M), SUM), out_dtype=SUM)
                    # the last block may hold one group only
                    group = tl.minimum(unit * 2 + half, tl.cdiv(k, 32) - 1)
                    scale = weight_scale(tl.load(scale_ptrs + group * row_words), row, MXFP4)
                    acc = plus_term(acc, sums, scale, tl.load(act_ptrs + group) if GROUPED_ACT else act_scale)
            else:
                numbers = operand(w, MXFP4, INTEGER, ORDER)
                x = activations(x_ptrs + block * 64, cols + block * 64, k, INTEGER, EVEN)
                if GROUP == 0:
                    row_sums = tl.dot(numbers, x, row_sums, out_dtype=SUM)
                else:
                    sums = tl.dot(numbers, x, sums, out_dtype=SUM)
        if GROUP >= 64:
            scale = weight_scale(tl.load(scale_ptrs + unit * row_words), row, MXFP4)
            acc = plus_term(acc, sums, scale, tl.load(act_ptrs + unit) if GROUPED_ACT else act_scale)
    if GROUP == 0:
        acc = plus_term(acc, row_sums, weight_scale(tl.load(scale_ptrs), row, MXFP4), act_scale)
    return acc


@triton.jit
def activations(x_ptrs, cols, k, INTEGER: tl.constexpr, EVEN: tl.constexpr):
    """A block of x transposed, [columns, tokens]: codes, or numbers rounded to bfloat16."""
    x = tl.load(x_ptrs) if EVEN else tl.load(x_ptrs, mask=cols[:, None] < k, other=0)
    return x if INTEGER else rounded(x.to(tl.float32), tl.bfloat16).to(BF16)


# compiled code must not depend on m, so that no value of it is special
@triton.jit(do_not_specialize=["m"])
def linear_packed(
    x_ptr, w_ptr, scale_ptr, act_ptr, bias_ptr, residual_ptr, out_ptr, m, n, k, n16,
    GROUP: tl.constexpr, MXFP4: tl.constexpr, INTEGER: tl.constexpr, ORDER: tl.constexpr,
    EVEN: tl.constexpr, GROUPED_ACT: tl.constexpr, SPLITS: tl.constexpr, APART: tl.constexpr,
    EVICT: tl.constexpr, STAGES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One tile of the output; with APART one split of it, as float32 at out_ptr [SPLITS, m, n].

    x [m, k] codes or floats; w and scale in a `*_mma16` order, scales as words of int32; act [m, 1 or
    groups] float32, or None; bias [n] float32 or None; residual and out [m, n].
    """
    # tokens vary fastest: programs that run together share weights
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    # rows and tokens beyond the last are read as if they were the last, and not stored
    tiles = tl.minimum(tl.program_id(1) * (BLOCK_N // 16) + tl.arange(0, BLOCK_N // 16), n16 // 16 - 1)
    token = tl.minimum(tokens, m - 1).to(tl.int64)
    blocks = tl.cdiv(k, 64)
    w_ptrs = w_ptr + tiles.to(tl.int64)[:, None] * (blocks * 512) + tl.arange(0, 512)[None, :]
    cols = columns(32 if GROUP == 32 else 64, ORDER)
    x_ptrs = x_ptr + token[None, :] * k + cols[:, None]
    row = tl.minimum(rows, n16 - 1)
    scale_ptrs = scale_ptr + row // (4 if MXFP4 else 2)
    act_ptrs = None
    if act_ptr is not None:
        act_ptrs = act_ptr + token * (tl.cdiv(k, GROUP) if GROUPED_ACT else 1)

    units = tl.cdiv(k, GROUP if GROUP > 64 else 64)
    each = tl.cdiv(units, SPLITS)
    if APART:
        split = tl.program_id(2)
        acc = _sum_of_groups(
            x_ptrs, w_ptrs, scale_ptrs, act_ptrs, cols, row, split * each,
            tl.minimum((split + 1) * each, units), k, n16, GROUP, MXFP4, INTEGER, ORDER, EVEN, GROUPED_ACT,
            EVICT, STAGES,
        )  # fmt: skip
        out_ptr += split.to(tl.int64) * m * n
    elif SPLITS > 1:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for split in range(SPLITS):
            acc += _sum_of_groups(
                x_ptrs, w_ptrs, scale_ptrs, act_ptrs, cols, row, split * each,
                tl.minimum((split + 1) * each, units), k, n16, GROUP, MXFP4, INTEGER, ORDER, EVEN,
                GROUPED_ACT, EVICT, STAGES,
            )  # fmt: skip
    else:
        acc = _sum_of_groups(
            x_ptrs, w_ptrs, scale_ptrs, act_ptrs, cols, row, 0, units, k, n16, GROUP, MXFP4, INTEGER, ORDER,
            EVEN, GROUPED_ACT, EVICT, STAGES,
        )  # fmt: skip
    store(acc, tokens, rows, bias_ptr, residual_ptr, out_ptr, m, n)
