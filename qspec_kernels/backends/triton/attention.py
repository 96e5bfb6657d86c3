"""Attention in spans of keys of fixed size at absolute positions, whose results are merged in their order.

Who sees what: `tile_of` finds the tokens whose queries share a tile, and the tile alone knows of the other
ones in it. What a token gets follows from its own query, position and row: spans and blocks of keys lie at
multiples of their sizes, and a block that a token does not see leaves its numbers as they are. Sizes follow
from the heads, the types and the device; no kernel looks at the number of tokens, except not to pass it.
"""

# constants and loops of device code are Triton's own
# pyright: reportArgumentType=false, reportOperatorIssue=false

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._attention import merged, span, tile_of
from qspec_kernels.backends.triton._interpreter import INTERPRETED, rounded
from qspec_kernels.backends.triton._launch import arch_of
from qspec_kernels.backends.triton._rows import BF16, F32, TYPES, launch, variant
from qspec_kernels.backends.triton._sizes import cdiv, next_power_of_2
from qspec_kernels.backends.triton._tiles import AMD_ARCH
from qspec_kernels.backends.triton._variants import Variant

# keys of a span: 8 heads at 4096 keys are 128 programs for one token
SPAN = 256
# spans whose results are merged before others are; from so many tokens times key heads on by one program
STRETCH, MANY = 4, 256
# spans of a tile that programs of their own take; in longer caches each takes several
LANES = 64
# programs that tokens are spread over, several tokens each, as long as that leaves a tile for each
PROGRAMS = 1024
# bytes of the results: tokens beyond them come in another pass
SCRATCH = 1 << 27
WARPS = 8
_LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["tokens", "capacity", "window", "each", "joined"])
def _spans(
    parts, stats, q, k_cache, v_cache, rows, positions, tokens, capacity, scale, window, each, joined,
    WINDOWED: tl.constexpr, Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr,
    WIDE: tl.constexpr, QUERIES: tl.constexpr, AHEAD: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr,
    SPAN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Program (tokens, key head, lane): tiles that begin with one of `each` tokens, some of their spans.

    The queries of a tile are its tokens times the GROUP heads that share a key head. Results of `joined`
    spans are merged, and left in `parts` [spans / joined, T, Hq, D], not yet divided, and in `stats`
    [spans / joined, T, Hq, 2]: largest score and sum.
    """
    GROUP: tl.constexpr = Q_HEADS // KV_HEADS
    token = tl.program_id(0) * each
    end = tl.minimum(token + each, tokens)
    while token < end:
        count = tile_of(rows, token, tokens, QUERIES, AHEAD, 64)
        if count > 0:
            place = tl.arange(0, TILE)
            valid = place // GROUP < count
            mine = token + place // GROUP
            # the tile's first query; from it on, in 32 bits, the others
            query = token.to(tl.int64) * Q_HEADS + tl.program_id(1) * GROUP
            other = place // GROUP * Q_HEADS + place % GROUP
            feature = tl.arange(0, WIDE)[None, :]
            queries = tl.load(
                q + query * D + (other[:, None] * D + feature), mask=valid[:, None] & (feature < D), other=0.0
            )
            last = tl.load(positions + mine, mask=valid, other=-1)
            first = tl.maximum(last - window + 1, 0) if WINDOWED else tl.zeros_like(last)
            highest = tl.max(last, 0)
            lowest = tl.min(tl.where(valid, first, highest), 0) if WINDOWED else 0
            keys = (tl.load(rows + token).to(tl.int64) * KV_HEADS + tl.program_id(1)) * capacity * D
            stretch = lowest // (SPAN * joined) + tl.program_id(2)
            while stretch <= highest // (SPAN * joined):
                attempt, attempts = 0, 1
                while attempt < attempts:
                    # all tokens at once; then, if there are NaN, each alone: what one of them sees that
                    # is not finite spreads to those that do not see it, since zero times it is NaN
                    chosen = valid & ((attempt == 0) | (place // GROUP == attempt - 1))
                    # a query that is not chosen sees nothing
                    now = tl.where(chosen, last, -1)
                    highest_now, lowest_now = highest, lowest
                    if attempt > 0:
                        highest_now = tl.load(positions + token + attempt - 1)
                        lowest_now = tl.maximum(highest_now - window + 1, 0) if WINDOWED else 0
                    top = tl.full([TILE], float("-inf"), tl.float32)
                    total = tl.zeros([TILE], tl.float32)
                    out = tl.zeros([TILE, WIDE], tl.float32)
                    begin = tl.maximum(stretch * joined, lowest_now // SPAN)
                    for number in range(begin, tl.minimum((stretch + 1) * joined, highest_now // SPAN + 1)):
                        start = tl.maximum(number * SPAN, lowest_now // KEYS * KEYS)
                        stop = tl.minimum(number * SPAN + SPAN, highest_now + 1)
                        new_top, new_total, new = span(
                            queries, k_cache + keys, v_cache + keys, first, now, start, stop, lowest_now,
                            highest_now, scale, D, KEYS, PARTS, WINDOWED,
                        )  # fmt: skip
                        top, total, out = merged(top, total, out, new_top, new_total, new)
                    at = tokens.to(tl.int64) * Q_HEADS * stretch + query
                    mask = chosen[:, None] & (feature < D)
                    tl.store(parts + at * D + (other[:, None] * D + feature), out, mask=mask)
                    tl.store(stats + 2 * at + 2 * other, top, mask=chosen)
                    tl.store(stats + 2 * at + 2 * other + 1, total, mask=chosen)
                    spoilt = tl.max((out != out).to(tl.int32)) > 0
                    attempts = tl.where((attempt == 0) & spoilt, count + 1, attempts)
                    attempt += 1
                stretch += tl.num_programs(2)
        token += tl.maximum(count, 1)


@triton.jit(do_not_specialize=["tokens", "window", "joined"])
def _merge(
    out, parts, stats, positions, tokens, window, joined, WINDOWED: tl.constexpr, Q_HEADS: tl.constexpr,
    D: tl.constexpr, WIDE: tl.constexpr, SPAN: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    """Program (token, query head): the results of its stretches, from the first to the last, as one.

    Where their spans came apart, `joined` = 1, the spans of each stretch are merged first.
    """
    query = tl.program_id(0).to(tl.int64) * Q_HEADS + tl.program_id(1) + tl.arange(0, 1)
    feature = tl.arange(0, WIDE)[None, :]
    none, zero = tl.full([1], float("-inf"), tl.float32), tl.zeros([1], tl.float32)
    empty = tl.zeros([1, WIDE], tl.float32)
    last = tl.load(positions + tl.program_id(0))
    first = tl.maximum(last - window + 1, 0) if WINDOWED else 0
    top, total, result = none, zero, empty
    size, apart = SPAN * joined, STRETCH // joined
    for stretch in range(first // (SPAN * STRETCH), last // (SPAN * STRETCH) + 1):
        new_top, new_total, new = none, zero, empty
        begin = tl.maximum(stretch * apart, first // size)
        for number in range(begin, tl.minimum((stretch + 1) * apart, last // size + 1)):
            at = tokens.to(tl.int64) * Q_HEADS * number + query
            values = tl.load(parts + at[:, None] * D + feature, mask=feature < D, other=0.0)
            new_top, new_total, new = merged(
                new_top, new_total, new, tl.load(stats + 2 * at), tl.load(stats + 2 * at + 1), values
            )
        top, total, result = merged(top, total, result, new_top, new_total, new)
    # + 0 makes zeros positive: their sign tells of blocks that only others of a tile saw
    result = result / total[:, None] + 0.0
    tl.store(out + query[:, None] * D + feature, rounded(result, out.dtype.element_ty), mask=feature < D)


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor, positions: Tensor, scale: float, window: int
) -> Tensor:
    """q [T, Hq, D], caches [B, Hkv, C, D], rows and positions int32 [T], window -1 for none -> [T, Hq, D]."""
    tokens, q_heads, d = q.shape
    _, kv_heads, capacity, _ = k_cache.shape
    out = torch.empty_like(q)
    arch = arch_of(q.device)
    shared, tile = _constants(q.dtype, k_cache.dtype, q_heads, kv_heads, d, window, arch)
    joined = STRETCH if tokens * kv_heads >= MANY else 1
    stretches, lanes = cdiv(capacity, SPAN * joined), max(1, LANES // joined)
    fitting = _fitting(tile["QUERIES"], 4 * stretches * q_heads * (d + 2))
    size = stretches * min(tokens, fitting) * q_heads
    parts, stats = (torch.empty(size * n, dtype=torch.float32, device=q.device) for n in (d, 2))
    for start in range(0, tokens, fitting):
        some = slice(start, start + fitting)
        count = min(fitting, tokens - start)
        each = _tokens_of_a_program(count * kv_heads * min(stretches, lanes), tile["QUERIES"])
        grid = cdiv(count, each), kv_heads, min(stretches, lanes)
        arguments = (
            parts, stats, q[some], k_cache, v_cache, rows[some], positions[some], count, capacity,
            scale * _LOG2_E, window, each, joined,
        )  # fmt: skip
        launch(_spans, grid, arguments, shared | tile, WARPS)
        arguments = out[some], parts, stats, positions[some], count, window, joined
        launch(_merge, (count, q_heads), arguments, shared | {"STRETCH": STRETCH}, 1)
    return out


def _fitting(queries: int, size: int) -> int:
    """Tokens of a pass, of `size` bytes of results each: whole tiles where there is room for them.

    Multiples of 8, since Triton compiles another kernel for addresses that are no multiples of 16 bytes.
    """
    whole, fitting = math.lcm(8, queries), SCRATCH // size
    if fitting >= whole:
        return fitting // whole * whole
    return max(fitting // 8, cdiv(queries, 8)) * 8


def _tokens_of_a_program(programs: int, queries: int) -> int:
    """Neighbours that a program looks for tiles among, where one each would be so many programs.

    Most tokens of a verification or of a prompt begin no tile, and a program that finds none still takes its
    turn on a multiprocessor.
    """
    return min(max(1, programs // PROGRAMS), queries)


def _constants(
    q_dtype: torch.dtype,
    cache_dtype: torch.dtype,
    q_heads: int,
    kv_heads: int,
    d: int,
    window: int,
    arch: int,
) -> tuple[dict[str, int], dict[str, int]]:
    """Constants of both kernels, and of the first alone."""
    wide, group = max(16, next_power_of_2(d)), q_heads // kv_heads
    side, keys = _sizes(q_dtype, cache_dtype, wide, arch)
    tile = max(side, next_power_of_2(group))
    parts = 2 if cache_dtype == F32 else 3 if q_dtype == F32 else 1
    if INTERPRETED or (parts == 2 and arch == AMD_ARCH):
        # three products of TF32 numbers are compiled for NVIDIA's alone
        parts = 0
    queries = tile // group
    return (
        {"WINDOWED": window > 0, "Q_HEADS": q_heads, "D": d, "WIDE": wide, "SPAN": SPAN},
        {
            "KV_HEADS": kv_heads, "QUERIES": queries, "AHEAD": next_power_of_2(queries), "TILE": tile,
            "KEYS": keys, "PARTS": parts,
        },
    )  # fmt: skip


def _sizes(q_dtype: torch.dtype, cache_dtype: torch.dtype, wide: int, arch: int) -> tuple[int, int]:
    """Rows of a tile and keys of a block: as many as leave no register in memory."""
    if cache_dtype == F32 or wide > 256:
        return 16, 16
    if wide > 128:
        return 16, 32
    if q_dtype == F32:
        return 32, 32
    # Hopper's and Blackwell's wide instructions take 64 rows
    return (64, 32) if arch // 10 in (9, 10) else (32, 64)


def variants(arch: int) -> Iterator[Variant]:
    """The heads of Llama 3 8B and Qwen 2.5 7B; narrow and wide heads; a window; a float32 cache."""
    for q_dtype, cache_dtype, heads, d, window in (
        (BF16, BF16, (32, 8), 128, -1),
        (F32, BF16, (32, 8), 128, -1),
        (F32, BF16, (28, 4), 128, -1),
        (F32, BF16, (32, 8), 128, 4096),
        (F32, BF16, (32, 32), 64, -1),
        (F32, BF16, (8, 4), 256, -1),
        (F32, F32, (32, 8), 128, -1),
    ):
        shared, tile = _constants(q_dtype, cache_dtype, *heads, d, window, arch)
        q, cache, scratch = TYPES[q_dtype], TYPES[cache_dtype], {"parts": "*fp32", "stats": "*fp32"}
        name = f"{q[1:]} {cache[1:]} {heads[0]}/{heads[1]} x {d}{' window' if window > 0 else ''}"
        types = {
            **scratch, "q": q, "k_cache": cache, "v_cache": cache, "rows": "*i32", "positions": "*i32",
            "tokens": "i32", "capacity": "i32", "scale": "fp32", "window": "i32", "each": "i32",
            "joined": "i32",
        }  # fmt: skip
        constants, opcodes = shared | tile, _opcodes(arch, tile["TILE"])
        yield variant(f"attention {name}", _spans, types, constants, WARPS, opcodes)
        types = {"out": q, **scratch, "positions": "*i32", "tokens": "i32", "window": "i32", "joined": "i32"}
        yield variant(f"attention merge {name}", _merge, types, shared | {"STRETCH": STRETCH}, 1)


def _opcodes(arch: int, tile: int) -> tuple[str, ...]:
    """Matrix instructions, and copies that run ahead."""
    together = {9: "HGMMA", 10: "UTCHMMA"}.get(arch // 10, "HMMA")
    return (together if tile >= 64 else "HMMA", "LDGSTS")
