"""Rows of a table."""

# constants and loops of device code are Triton's own
# pyright: reportArgumentType=false

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._interpreter import rounded
from qspec_kernels.backends.triton._rows import BF16, F32, TYPES, launch, variant
from qspec_kernels.backends.triton._sizes import cdiv
from qspec_kernels.backends.triton._variants import Variant

BLOCK = 1024


@triton.jit
def _kernel(out, table, ids, W: tl.constexpr, ROUNDED: tl.constexpr, BLOCK: tl.constexpr):
    """Program (token, block of columns)."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(table + tl.load(ids + token) * W + at, mask=at < W)
    if ROUNDED:
        value = rounded(value.to(tl.float32), tl.bfloat16)
    tl.store(out + token * W + at, value.to(tl.float32), mask=at < W)


def embedding(table: Tensor, ids: Tensor, rounded: bool, dtype: torch.dtype) -> Tensor:
    """table [V, W], ids int64 [T] -> [T, W] in `dtype`, which is float32, through bfloat16 if `rounded`."""
    tokens, width = len(ids), table.shape[1]
    out = table.new_empty(tokens, width, dtype=dtype)
    constants = {"W": width, "ROUNDED": rounded, "BLOCK": BLOCK}
    launch(_kernel, (tokens, cdiv(width, BLOCK)), (out, table, ids), constants, 4)
    return out


def variants(arch: int) -> Iterator[Variant]:
    """The hidden sizes of Llama 3 8B and Qwen 2.5 7B."""
    del arch
    for dtype, width, is_rounded in ((F32, 4096, True), (BF16, 4096, False), (BF16, 3584, False)):
        constants = {"W": width, "ROUNDED": is_rounded, "BLOCK": BLOCK}
        types = {"out": "*fp32", "table": TYPES[dtype], "ids": "*i64"}
        yield variant(f"embedding {TYPES[dtype][1:]} {width}", _kernel, types, constants, 4)
