"""Keys and values into their slots."""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._interpreter import rounded
from qspec_kernels.backends.triton._rows import BF16, F32, TYPES, launch, variant
from qspec_kernels.backends.triton._sizes import cdiv
from qspec_kernels.backends.triton._variants import Variant

BLOCK = 1024


@triton.jit(do_not_specialize=["capacity"])
def _kernel(
    k_cache, v_cache, k, v, rows, positions, capacity, H: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr
):
    """Program (token, block of its features)."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    head = tl.load(rows + token).to(tl.int64) * H + at // D
    slot = (head * capacity + tl.load(positions + token)) * D + at % D
    mask = at < H * D
    key = tl.load(k + token * (H * D) + at, mask=mask)
    value = tl.load(v + token * (H * D) + at, mask=mask)
    tl.store(k_cache + slot, rounded(key.to(tl.float32), k_cache.dtype.element_ty), mask=mask)
    tl.store(v_cache + slot, rounded(value.to(tl.float32), v_cache.dtype.element_ty), mask=mask)


def cache_write(
    k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor
) -> None:
    """k, v [T, H, D] into caches [B, H, C, D] at (rows[t], positions[t]), int32 [T], in place."""
    tokens, heads, d = k.shape
    grid = (tokens, cdiv(heads * d, BLOCK))
    constants = {"H": heads, "D": d, "BLOCK": BLOCK}
    arguments = k_cache, v_cache, k, v, rows, positions, k_cache.shape[2]
    launch(_kernel, grid, arguments, constants, 4)


def variants(arch: int) -> Iterator[Variant]:
    """The key and value heads of Llama 3 8B and Qwen 2.5 7B, into a bfloat16 cache."""
    del arch
    for dtype, heads in ((F32, 8), (F32, 4), (BF16, 8)):
        types = {"k_cache": TYPES[BF16], "v_cache": TYPES[BF16], "k": TYPES[dtype], "v": TYPES[dtype]}
        types |= {"rows": "*i32", "positions": "*i32", "capacity": "i32"}
        constants = {"H": heads, "D": 128, "BLOCK": BLOCK}
        yield variant(f"cache_write {TYPES[dtype][1:]} {heads} x 128", _kernel, types, constants, 4)
