"""From the fused projection to queries and a filled cache: head norms, rotary embedding, cache write."""

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._interpreter import rounded
from qspec_kernels.backends.triton._rope import turned
from qspec_kernels.backends.triton._rows import BF16, F32, TYPES, block_of, launch, normed, rms, variant
from qspec_kernels.backends.triton._sizes import cdiv, next_power_of_2
from qspec_kernels.backends.triton._variants import Variant

TILE = 512


@triton.jit
def _gain(q_gain, k_gain, at, is_q, mask):
    """Gains [heads, pairs]: the query heads' or the key heads'."""
    of_q, of_k = tl.load(q_gain + at, mask=mask), tl.load(k_gain + at, mask=mask)
    return tl.where(is_q, of_q.to(tl.float32), of_k.to(tl.float32))


@triton.jit(do_not_specialize=["capacity"])
def _kernel(
    out, k_cache, v_cache, x, rows, positions, inv_freq, scaling, q_gain, k_gain, eps, capacity,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (token, HEADS of its query, key and value heads)."""
    D: tl.constexpr = 2 * HALF
    TURNED: tl.constexpr = Q_HEADS + KV_HEADS
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    is_q, is_k = head < Q_HEADS, (head >= Q_HEADS) & (head < TURNED)
    is_v = (head >= TURNED) & (head < TURNED + KV_HEADS)
    mask = (head < TURNED + KV_HEADS) & (pair < HALF)
    start = (token * (TURNED + KV_HEADS) + head) * D
    first, second = tl.load(x + start + pair, mask=mask), tl.load(x + start + HALF + pair, mask=mask)
    slot = tl.load(rows + token).to(tl.int64) * KV_HEADS + head - tl.where(is_k, Q_HEADS, TURNED)
    slot = (slot * capacity + position) * D + pair
    CACHED: tl.constexpr = v_cache.dtype.element_ty
    tl.store(v_cache + slot, rounded(first.to(tl.float32), CACHED), mask=mask & is_v)
    tl.store(v_cache + slot + HALF, rounded(second.to(tl.float32), CACHED), mask=mask & is_v)
    if q_gain is not None:
        # heads that do not exist are read as the first: of what is read there nothing is stored
        scale = rms(x + tl.where(head < TURNED, start, token * ((TURNED + KV_HEADS) * D)), eps, D, BLOCK)
        gain = _gain(q_gain, k_gain, pair, is_q, pair < HALF)
        first = rounded(normed(first, scale, gain), first.dtype)
        gain = _gain(q_gain, k_gain, pair + HALF, is_q, pair < HALF)
        second = rounded(normed(second, scale, gain), second.dtype)
    new_first, new_second = turned(first, second, position, inv_freq, pair, scaling, HALF)
    new_first, new_second = rounded(new_first, first.dtype), rounded(new_second, first.dtype)
    query = (token * Q_HEADS + head) * D + pair
    tl.store(out + query, new_first, mask=mask & is_q)
    tl.store(out + query + HALF, new_second, mask=mask & is_q)
    tl.store(k_cache + slot, rounded(new_first.to(tl.float32), CACHED), mask=mask & is_k)
    tl.store(k_cache + slot + HALF, rounded(new_second.to(tl.float32), CACHED), mask=mask & is_k)


def rope_cache_write(
    x: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor, positions: Tensor, inv_freq: Tensor,
    scaling: float, q_gain: Tensor | None, k_gain: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    """x [T, (Hq + 2 Hkv) * D], caches [B, Hkv, C, D], rows and positions int32 [T] -> queries [T, Hq, D]."""
    tokens, (_, kv_heads, capacity, d) = len(x), k_cache.shape
    q_heads = x.shape[1] // d - 2 * kv_heads
    out = x.new_empty(tokens, q_heads, d)
    constants = _constants(q_heads, kv_heads, d)
    grid = (tokens, cdiv(q_heads + 2 * kv_heads, constants["HEADS"]))
    arguments = (
        out, k_cache, v_cache, x, rows, positions, inv_freq, scaling, q_gain, k_gain, eps, capacity
    )  # fmt: skip
    launch(_kernel, grid, arguments, constants, 1)
    return out


def _constants(q_heads: int, kv_heads: int, d: int) -> dict[str, Any]:
    pairs = next_power_of_2(d // 2)
    return {
        "Q_HEADS": q_heads, "KV_HEADS": kv_heads, "HALF": d // 2, "HEADS": max(1, TILE // 2 // pairs),
        "PAIRS": pairs, "BLOCK": block_of(d),
    }  # fmt: skip


def variants(arch: int) -> Iterator[Variant]:
    """The heads of Llama 3 8B and Qwen 2.5 7B, and of Qwen 3 8B with its norms; a bfloat16 cache."""
    del arch
    for dtype, q_heads, kv_heads, norms in (
        (F32, 32, 8, False), (F32, 28, 4, False), (F32, 32, 8, True), (BF16, 32, 8, False),
        (BF16, 32, 8, True),
    ):  # fmt: skip
        types = {
            "out": TYPES[dtype], "k_cache": TYPES[BF16], "v_cache": TYPES[BF16], "x": TYPES[dtype],
            "rows": "*i32", "positions": "*i32", "inv_freq": "*fp32", "scaling": "fp32", "eps": "fp32",
            "capacity": "i32",
        }  # fmt: skip
        constants = _constants(q_heads, kv_heads, 128)
        if norms:
            types |= {"q_gain": "*fp32", "k_gain": "*fp32"}
        else:
            constants |= {"q_gain": None, "k_gain": None}
        name = f"rope_cache_write {TYPES[dtype][1:]} {q_heads}+{kv_heads}{' normed' if norms else ''}"
        yield variant(name, _kernel, types, constants, 1)
