"""The largest logits, computed again from a dense weight.

A logit and its place make one integer that orders as the pair does, ties to the lowest place; the largest of
each chunk of a row are found beside each other, then the largest of those, then their products.
"""

# constants and loops of device code are Triton's own
# pyright: reportArgumentType=false

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._interpreter import rounded
from qspec_kernels.backends.triton._rows import BF16, F32, TYPES, block_of, launch, row_sum, variant
from qspec_kernels.backends.triton._sizes import cdiv, next_power_of_2
from qspec_kernels.backends.triton._variants import Variant

CHUNK = 4096
# beyond it choosing is a sort of the whole row
LARGEST_COUNT = 128
BLOCK = 1024
_NONE = tl.constexpr(-(2**63))


@triton.jit
def _largest_of_chunk(keys, logits, N: tl.constexpr, COUNT: tl.constexpr, CHUNK: tl.constexpr):
    """Program (row, chunk): keys int64 [M, chunks, COUNT], largest first."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    # + 0 makes a negative zero positive, for the two are equal
    logit = tl.load(logits + row * N + at, mask=at < N, other=float("-inf")) + 0.0
    bits = logit.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    # what is not to be chosen gets the least key of all
    key = tl.where(logit == float("-inf"), _NONE, (ordered.to(tl.int64) << 32) + (0x7FFFFFFF - at))
    place = (row * tl.num_programs(1) + tl.program_id(1)) * COUNT + tl.arange(0, COUNT)
    tl.store(keys + place, tl.topk(key, COUNT))


@triton.jit(do_not_specialize=["count"])
def _largest_of_row(ids, keys, count, FOUND: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr):
    """Program (row): places of the `count` largest of FOUND keys, int64 [M, COUNT], -1 for none."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDE)
    key = tl.topk(tl.load(keys + row * FOUND + at, mask=at < FOUND, other=_NONE), COUNT)
    rank = tl.arange(0, COUNT)
    # above infinity there are NaN, which take a place and stay
    number = (key != _NONE) & ((key >> 32) <= 0x7F800000)
    place = 0x7FFFFFFF - (key & 0x7FFFFFFF)
    tl.store(ids + row * COUNT + rank, tl.where(number & (rank < count), place, -1))


@triton.jit
def _products(
    logits, ids, x, weight, bias, N: tl.constexpr, K: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    """Program (row, rank): one logit."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(ids + row * COUNT + tl.program_id(1))
    if place >= 0:
        terms = tl.zeros([1, BLOCK], tl.float32)
        for start in range(0, K, BLOCK):
            at = start + tl.arange(0, BLOCK)[None, :]
            value = tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32)
            value = rounded(value, tl.bfloat16).to(tl.float32)
            terms += value * tl.load(weight + place * K + at, mask=at < K, other=0.0).to(tl.float32)
        logit = tl.sum(row_sum(terms), 0)
        if bias is not None:
            logit += tl.load(bias + place)
        tl.store(logits + row * N + place, rounded(logit, x.dtype.element_ty).to(tl.float32))


def rescore(logits: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> None:
    """logits float32 [M, N] in place, x [M, K], weight bfloat16 [N, K], bias float32 [N]."""
    (rows, n), k = logits.shape, x.shape[1]
    ids = _chosen(logits, min(count, n))
    constants = {"N": n, "K": k, "COUNT": ids.shape[1], "BLOCK": min(BLOCK, block_of(k))}
    launch(_products, (rows, ids.shape[1]), (logits, ids, x, weight, bias), constants, 4)


def _chosen(logits: Tensor, count: int) -> Tensor:
    """Places of the largest logits of each row, int64 [M, count or more], -1 for none."""
    if count > LARGEST_COUNT:
        largest, ids = logits.sort(dim=1, descending=True, stable=True)
        # a NaN sorts before all numbers and is none that is computed again
        return torch.where(largest > -torch.inf, ids, -1)[:, :count].contiguous()
    rows, n = logits.shape
    wide, chunk, chunks, found = _sizes(n, count)
    keys = torch.empty(rows, found, dtype=torch.int64, device=logits.device)
    ids = torch.empty(rows, wide, dtype=torch.int64, device=logits.device)
    constants = {"N": n, "COUNT": wide, "CHUNK": chunk}
    launch(_largest_of_chunk, (rows, chunks), (keys, logits), constants, 8)
    constants = {"FOUND": found, "WIDE": next_power_of_2(found), "COUNT": wide}
    launch(_largest_of_row, (rows,), (ids, keys, count), constants, 4)
    return ids


def _sizes(n: int, count: int) -> tuple[int, int, int, int]:
    """The count as a power of two, logits of a chunk, chunks, and how many keys they give."""
    wide = max(2, next_power_of_2(count))
    chunk = max(wide, min(CHUNK, next_power_of_2(n)))
    chunks = cdiv(n, chunk)
    return wide, chunk, chunks, chunks * wide


def variants(arch: int) -> Iterator[Variant]:
    """The vocabularies of Llama 3 8B and Qwen 2.5 7B, 32 logits."""
    del arch
    for dtype, n, k in ((F32, 128256, 4096), (BF16, 152064, 3584)):
        wide, chunk, _, found = _sizes(n, 32)
        types = {"keys": "*i64", "logits": "*fp32"}
        constants = {"N": n, "COUNT": wide, "CHUNK": chunk}
        yield variant(f"rescore chunks {n}", _largest_of_chunk, types, constants, 8)
        types = {"ids": "*i64", "keys": "*i64", "count": "i32"}
        constants = {"FOUND": found, "WIDE": next_power_of_2(found), "COUNT": wide}
        yield variant(f"rescore row {n}", _largest_of_row, types, constants, 4)
        types = {"logits": "*fp32", "ids": "*i64", "x": TYPES[dtype], "weight": "*bf16", "bias": "*fp32"}
        constants = {"N": n, "K": k, "COUNT": wide, "BLOCK": BLOCK}
        yield variant(f"rescore products {TYPES[dtype][1:]} {n} x {k}", _products, types, constants, 4)
