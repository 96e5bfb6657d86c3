"""Root mean square normalisation: a program per row."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._interpreter import rounded
from qspec_kernels.backends.triton._rows import (
    BF16,
    F32,
    TYPES,
    block_of,
    launch,
    normed,
    rms,
    variant,
    warps_of,
)
from qspec_kernels.backends.triton._variants import Variant


@triton.jit
def _kernel(out, x, gain, eps, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x += row * K
    scale = rms(x + tl.zeros([1, 1], tl.int32), eps, K, BLOCK)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)[None, :]
        # where one block is the row, this is the load that the sum began with
        value = tl.load(x + at, mask=at < K, other=0.0)
        result = normed(value, scale, tl.load(gain + at, mask=at < K, other=0.0))
        tl.store(out + row * K + at, rounded(result, value.dtype), mask=at < K)


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [M, K], weight float32 [K] -> [M, K] in x's dtype."""
    rows, k = x.shape
    out = torch.empty_like(x)
    block = block_of(k)
    launch(_kernel, (rows,), (out, x, weight, eps), {"K": k, "BLOCK": block}, warps_of(block))
    return out


def variants(arch: int) -> Iterator[Variant]:
    """Hidden sizes of Llama 3 8B and 70B and of Qwen 2.5 7B, and one head."""
    del arch
    for dtype, k in ((F32, 128), (F32, 3584), (F32, 4096), (F32, 8192), (BF16, 4096)):
        constants = {"K": k, "BLOCK": block_of(k)}
        types = {"out": TYPES[dtype], "x": TYPES[dtype], "gain": "*fp32", "eps": "fp32"}
        yield variant(f"rmsnorm {TYPES[dtype][1:]} {k}", _kernel, types, constants, warps_of(block_of(k)))
