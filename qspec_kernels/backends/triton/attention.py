"""Attention in spans of keys of fixed size at absolute positions, whose results are merged in their order.

Who sees what: `tile_of` finds the tokens whose queries share a tile, and the tile alone knows of the other
ones in it. What a token gets follows from its own query, position and row: spans and blocks of keys lie at
multiples of their sizes, and a block that a token does not see leaves its numbers as they are. Sizes follow
from the heads, the types and nothing else; no kernel looks at the number of tokens, except not to pass it.
"""

# constants and loops of device code are Triton's own
# pyright: reportArgumentType=false, reportOperatorIssue=false

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._attention import span, tile_of
from qspec_kernels.backends.triton._interpreter import INTERPRETED, rounded
from qspec_kernels.backends.triton._rows import BF16, F32, TYPES, launch, variant
from qspec_kernels.backends.triton._variants import Variant

# keys whose softmax is one result: 8 heads at 4096 keys are 128 programs for one token
SPAN = 256
# programs for the spans of one tile, which take several each in longer caches
LANES = 64
# bytes of the spans' results: tokens beyond them come in another pass
SCRATCH = 1 << 27
WARPS = 8
_LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["tokens", "capacity", "window"])
def _spans(
    parts, stats, q, k_cache, v_cache, rows, positions, tokens, capacity, scale, window,
    WINDOWED: tl.constexpr, Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr,
    WIDE: tl.constexpr, QUERIES: tl.constexpr, AHEAD: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr,
    SPAN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Program (token, key head, lane): the tile that begins with this token, and every so many spans of it.

    The queries of a tile are its tokens times the GROUP heads that share a key head. A span's results are in
    `parts` [spans, T, Hq, D], not yet divided, and in `stats` [spans, T, Hq, 2]: largest score and sum.
    """
    GROUP: tl.constexpr = Q_HEADS // KV_HEADS
    token = tl.program_id(0)
    count = tile_of(rows, token, tokens, QUERIES, AHEAD, 64)
    if count > 0:
        place = tl.arange(0, TILE)
        valid = place // GROUP < count
        mine = token + place // GROUP
        query = mine.to(tl.int64) * Q_HEADS + tl.program_id(1) * GROUP + place % GROUP
        feature = tl.arange(0, WIDE)[None, :]
        queries = tl.load(q + query[:, None] * D + feature, mask=valid[:, None] & (feature < D), other=0.0)
        last = tl.load(positions + mine, mask=valid, other=-1)
        first = tl.maximum(last - window + 1, 0) if WINDOWED else tl.zeros_like(last)
        highest = tl.max(last, 0)
        lowest = tl.min(tl.where(valid, first, highest), 0) if WINDOWED else 0
        keys = (tl.load(rows + token).to(tl.int64) * KV_HEADS + tl.program_id(1)) * capacity * D
        for number in range(lowest // SPAN + tl.program_id(2), highest // SPAN + 1, tl.num_programs(2)):
            at = tokens.to(tl.int64) * Q_HEADS * number + query
            attempt, attempts = 0, 1
            while attempt < attempts:
                # all tokens at once; then, if there are NaN, each alone: what one of them sees that is not
                # finite spreads to those that do not see it, since zero times it is NaN
                chosen = valid & tl.where(attempt == 0, True, place // GROUP == attempt - 1)
                # a query that is not chosen sees nothing
                now = tl.where(chosen, last, -1)
                highest_now = tl.max(now, 0)
                lowest_now = tl.min(tl.where(chosen, first, highest_now), 0) if WINDOWED else 0
                start = tl.maximum(number * SPAN, lowest_now // KEYS * KEYS)
                stop = tl.minimum(number * SPAN + SPAN, highest_now + 1)
                top, total, out = span(
                    queries, k_cache + keys, v_cache + keys, first, now, start, stop, lowest_now, highest_now,
                    scale, D, KEYS, PARTS, WINDOWED,
                )  # fmt: skip
                tl.store(parts + at[:, None] * D + feature, out, mask=chosen[:, None] & (feature < D))
                tl.store(stats + 2 * at, top, mask=chosen)
                tl.store(stats + 2 * at + 1, total, mask=chosen)
                spoilt = tl.max(tl.max((out != out).to(tl.int32), 1), 0) > 0
                attempts = tl.where((attempt == 0) & spoilt, count + 1, attempts)
                attempt += 1


@triton.jit(do_not_specialize=["tokens", "window"])
def _merge(
    out, parts, stats, positions, tokens, window, WINDOWED: tl.constexpr, Q_HEADS: tl.constexpr,
    D: tl.constexpr, WIDE: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Program (token, query head): the results of its spans, from the first to the last, as one."""
    query = tl.program_id(0).to(tl.int64) * Q_HEADS + tl.program_id(1)
    feature = tl.arange(0, WIDE)
    last = tl.load(positions + tl.program_id(0))
    first = tl.maximum(last - window + 1, 0) if WINDOWED else 0
    top = float("-inf")
    total = 0.0
    result = tl.zeros([WIDE], tl.float32)
    for number in range(first // SPAN, last // SPAN + 1):
        at = tokens.to(tl.int64) * Q_HEADS * number + query
        new_top = tl.load(stats + 2 * at)
        new = tl.load(parts + at * D + feature, mask=feature < D, other=0.0)
        both = tl.maximum(top, new_top)
        finite = tl.where(both == float("-inf"), 0.0, both)
        decay, weight = tl.exp2(top - finite), tl.exp2(new_top - finite)
        total = total * decay + tl.load(stats + 2 * at + 1) * weight
        result = result * decay + new * weight
        top = both
    # + 0 makes zeros positive: their sign tells of blocks that only others of a tile saw
    result = result / total + 0.0
    tl.store(out + query * D + feature, rounded(result, out.dtype.element_ty), mask=feature < D)


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor, positions: Tensor, scale: float, window: int
) -> Tensor:
    """q [T, Hq, D], caches [B, Hkv, C, D], rows and positions int32 [T], window -1 for none -> [T, Hq, D]."""
    tokens, q_heads, d = q.shape
    _, kv_heads, capacity, _ = k_cache.shape
    out = torch.empty_like(q)
    shared, tile = _constants(q.dtype, k_cache.dtype, q_heads, kv_heads, d, window)
    spans = triton.cdiv(capacity, SPAN)
    fitting = max(tile["QUERIES"], SCRATCH // (4 * spans * q_heads * (d + 2)))
    size = spans * min(tokens, fitting) * q_heads
    parts, stats = (torch.empty(size * n, dtype=torch.float32, device=q.device) for n in (d, 2))
    for start in range(0, tokens, fitting):
        some = slice(start, start + fitting)
        count = min(fitting, tokens - start)
        grid = count, kv_heads, min(spans, LANES)
        arguments = (
            parts, stats, q[some], k_cache, v_cache, rows[some], positions[some], count, capacity,
            scale * _LOG2_E, window,
        )  # fmt: skip
        launch(_spans, grid, arguments, shared | tile, WARPS)
        arguments = out[some], parts, stats, positions[some], count, window
        launch(_merge, (count, q_heads), arguments, shared, 1)
    return out


def _constants(
    q_dtype: torch.dtype, cache_dtype: torch.dtype, q_heads: int, kv_heads: int, d: int, window: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Constants of both kernels, and of the first alone."""
    wide, group = max(16, triton.next_power_of_2(d)), q_heads // kv_heads
    # what registers and shared memory hold: float32 numbers are cut in three there
    keys = 64 if wide <= 128 and cache_dtype == BF16 else 32 if wide <= 256 else 16
    side = 16 if cache_dtype == F32 else 32 if q_dtype == F32 else 64
    tile = max(min(keys, side), triton.next_power_of_2(group))
    parts = 6 if cache_dtype == F32 else 3 if q_dtype == F32 else 1
    queries = tile // group
    return (
        {"WINDOWED": window > 0, "Q_HEADS": q_heads, "D": d, "WIDE": wide, "SPAN": SPAN},
        {
            "KV_HEADS": kv_heads, "QUERIES": queries, "AHEAD": triton.next_power_of_2(queries), "TILE": tile,
            "KEYS": keys, "PARTS": 0 if INTERPRETED else parts,
        },
    )  # fmt: skip


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
        shared, tile = _constants(q_dtype, cache_dtype, *heads, d, window)
        q, cache, scratch = TYPES[q_dtype], TYPES[cache_dtype], {"parts": "*fp32", "stats": "*fp32"}
        name = f"{q[1:]} {cache[1:]} {heads[0]}/{heads[1]} x {d}{' window' if window > 0 else ''}"
        types = {
            **scratch, "q": q, "k_cache": cache, "v_cache": cache, "rows": "*i32", "positions": "*i32",
            "tokens": "i32", "capacity": "i32", "scale": "fp32", "window": "i32",
        }  # fmt: skip
        constants, opcodes = shared | tile, _opcodes(arch, tile["TILE"])
        # local memory: a few registers are put aside while the keys are gone through, and not touched there
        yield variant(f"attention {name}", _spans, types, constants, WARPS, opcodes, local_memory=True)
        types = {"out": q, **scratch, "positions": "*i32", "tokens": "i32", "window": "i32"}
        yield variant(f"attention merge {name}", _merge, types, shared, 1)


def _opcodes(arch: int, tile: int) -> tuple[str, ...]:
    """Matrix instructions, and copies that run ahead."""
    together = {9: "HGMMA", 10: "UTCHMMA"}.get(arch // 10, "HMMA")
    return (together if tile >= 64 else "HMMA", "LDGSTS")
