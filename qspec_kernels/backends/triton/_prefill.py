"""The kernel of linears with packed weights in the prefill phase: tiles for hundreds of tokens and more.

As in `_packed`, weights are the matrix unit's left operand and are expanded in registers. What a token's row
goes through follows from the weight and the architecture: dots of DOT along K are added up inside a group,
groups in order, K is never cut, and one instruction serves every number of tokens.
"""

# Triton's language is no typed Python
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

from qspec_kernels.backends.triton._epilogue import store
from qspec_kernels.backends.triton._interpreter import INTERPRETED
from qspec_kernels.backends.triton._packed import activations, columns, operand, plus_term, weight_scale


@triton.jit
def tile_of(m, n, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, TOGETHER: tl.constexpr):
    """Which tile of the output, (features, tokens), is this program's.

    Programs start in the order of their ids. TOGETHER tiles of features share each tile of tokens, so that
    those that run at a time read few weights and few tokens from memory.
    """
    tiles_n, tiles_m = tl.cdiv(n, BLOCK_N), tl.cdiv(m, BLOCK_M)
    program, band = tl.program_id(0), TOGETHER * tiles_m
    first = program // band * TOGETHER
    height = tl.minimum(tiles_n - first, TOGETHER)
    return first + program % band % height, program % band // height


@triton.jit
def store_tile(acc, tile_m, rows, bias_ptr, residual_ptr, out_ptr, m, n):
    """acc [features, tokens] into its place in out [m, n], finished."""
    BLOCK_M: tl.constexpr = acc.shape[1]
    if BLOCK_M > 128:
        # residual and result of a whole tile would not fit into registers
        HALF: tl.constexpr = BLOCK_M // 2
        halves = tl.split(tl.permute(tl.reshape(acc, (acc.shape[0], 2, HALF)), (0, 2, 1)))
        for half in tl.static_range(2):
            tokens = tile_m * BLOCK_M + half * HALF + tl.arange(0, HALF)
            store(halves[half], tokens, rows, bias_ptr, residual_ptr, out_ptr, m, n)
    else:
        tokens = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        store(acc, tokens, rows, bias_ptr, residual_ptr, out_ptr, m, n)


@triton.jit
def _expanded(w, MXFP4: tl.constexpr, INTEGER: tl.constexpr, ORDER: tl.constexpr, DOT: tl.constexpr):
    """Bytes [tiles * blocks, 256 or 512] -> numbers [16 tiles, DOT], blocks side by side."""
    numbers = operand(w, MXFP4, INTEGER, ORDER)
    if DOT == 128:
        TILES: tl.constexpr = w.shape[0] // 2
        numbers = tl.permute(tl.reshape(numbers, (TILES, 2, 16, 64)), (0, 2, 1, 3))
        numbers = tl.reshape(numbers, (TILES * 16, 128))
    return numbers


@triton.jit
def _shrunk(word, row):
    """A row's MXFP4 scale as bfloat16 2^(E - 130), exact and up to E = 3 subnormal; NaN for 255.

    Expanded numbers, at most 12 and at least 1, become bfloat16 numbers without rounding: a quarter of the
    weight, since some weights themselves are too large.
    """
    e = (word >> row % 4 * 8) & 255
    bits = tl.where(e > 3, (e - 3) << 7, 8 << e)
    bits = tl.where(e == 255, 0x7FC0, bits)
    if INTERPRETED:
        # the interpreter's own conversion takes subnormal numbers for zero
        return (bits << 16).to(tl.float32, bitcast=True)
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit(do_not_specialize=["m"])
def linear_prefill(
    x_ptr, w_ptr, scale_ptr, act_ptr, bias_ptr, residual_ptr, out_ptr, m, n, k, n16,
    GROUP: tl.constexpr, DOT: tl.constexpr, STEP: tl.constexpr, MXFP4: tl.constexpr,
    INTEGER: tl.constexpr, ORDER: tl.constexpr, EVEN: tl.constexpr, GROUPED_ACT: tl.constexpr,
    STAGES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """One tile of the output, in steps of STEP along K.

    x [m, k] codes or bfloat16; the rest as in `linear_packed`. GROUP 0: a row is one group. Groups of MXFP4
    numbers need no sums of their own where products are of floats: their scales go into the operand, exactly.
    """
    FOLDED: tl.constexpr = MXFP4 and not INTEGER
    ONE_SUM: tl.constexpr = FOLDED or GROUP == 0
    SUM: tl.constexpr = tl.int32 if INTEGER else tl.float32
    DOTS: tl.constexpr = 1 if ONE_SUM else GROUP // DOT
    BLOCKS: tl.constexpr = 2 if DOT == 128 else 1
    WORD: tl.constexpr = 4 if MXFP4 else 2
    tile_n, tile_m = tile_of(m, n, BLOCK_N, BLOCK_M, TOGETHER)
    rows = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # rows and tokens beyond the last are read as if they were the last, and not stored
    token = tl.minimum(tile_m * BLOCK_M + tl.arange(0, BLOCK_M), m - 1).to(tl.int64)
    row = tl.minimum(rows, n16 - 1)
    blocks = tl.cdiv(k, 64)
    piece = tl.arange(0, BLOCK_N // 16 * BLOCKS)
    tiles = tl.minimum(tile_n * (BLOCK_N // 16) + piece // BLOCKS, n16 // 16 - 1)
    byte = tl.arange(0, 256 if DOT == 32 else 512)
    if DOT == 32:
        # the half of a block that a word c is, of which 8 bytes lie together
        byte = byte // 8 * 16 + byte % 8
    w_ptrs = w_ptr + (tiles.to(tl.int64) * blocks + piece % BLOCKS)[:, None] * 512 + byte[None, :]
    cols = columns(DOT, ORDER)
    x_ptrs = x_ptr + token[None, :] * k + cols[:, None]
    scale_ptrs = scale_ptr + row // WORD
    row_words = n16 // WORD
    groups = tl.cdiv(k, 32 if MXFP4 else GROUP if GROUP > 0 else k)
    act_scale, act_ptrs = None, act_ptr
    if INTEGER:
        act_ptrs += token * (groups if GROUPED_ACT else 1)
        if not GROUPED_ACT:
            act_scale = tl.load(act_ptrs)

    acc = tl.zeros((BLOCK_N, BLOCK_M), SUM if ONE_SUM else tl.float32)
    for step in tl.range(0, tl.cdiv(k, STEP), num_stages=STAGES):
        for i in tl.static_range(STEP // DOT):
            start = step * STEP + i * DOT
            # so written that the compiler sees what it is a multiple of
            w_place = step * (STEP * 8) + (i // 2 * 512 + i % 2 * 8 if DOT == 32 else i * DOT * 8)
            if EVEN:
                w = tl.load(w_ptrs + w_place)
            else:
                inside = (start // 64 + piece % BLOCKS < blocks)[:, None]
                w = tl.load(w_ptrs + w_place, mask=inside, other=0)
            x = activations(x_ptrs + start, cols + start, k, INTEGER, EVEN)
            numbers = _expanded(w, MXFP4, INTEGER, ORDER, DOT)
            if FOLDED:
                group = tl.minimum(start // 32 + tl.arange(0, DOT // 32), groups - 1)
                word = tl.load(scale_ptrs[:, None] + group[None, :] * row_words)
                numbers = tl.reshape(numbers, (BLOCK_N, DOT // 32, 32))
                numbers = numbers * _shrunk(word, row[:, None])[:, :, None]
                numbers = tl.reshape(numbers, (BLOCK_N, DOT))
            if ONE_SUM:
                acc = tl.dot(numbers, x, acc, out_dtype=SUM)
            else:
                if i % DOTS == 0:
                    sums = tl.zeros((BLOCK_N, BLOCK_M), SUM)
                sums = tl.dot(numbers, x, sums, out_dtype=SUM)
                if i % DOTS == DOTS - 1:
                    # beyond the last group sums are zero
                    group = tl.minimum(start // GROUP, groups - 1)
                    scale = weight_scale(tl.load(scale_ptrs + group * row_words), row, MXFP4)
                    acc = plus_term(acc, sums, scale, tl.load(act_ptrs + group) if GROUPED_ACT else act_scale)
    if FOLDED:
        acc *= 4.0
    elif GROUP == 0:
        scale = weight_scale(tl.load(scale_ptrs), row, MXFP4)
        acc = plus_term(tl.zeros((BLOCK_N, BLOCK_M), tl.float32), acc, scale, act_scale)
    store_tile(acc, tile_m, rows, bias_ptr, residual_ptr, out_ptr, m, n)
