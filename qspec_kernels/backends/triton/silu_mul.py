"""The gate of a gated feed-forward layer."""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._interpreter import rounded
from qspec_kernels.backends.triton._rows import BF16, F32, TYPES, gated, launch, variant
from qspec_kernels.backends.triton._sizes import cdiv
from qspec_kernels.backends.triton._variants import Variant

BLOCK = 1024


@triton.jit
def _kernel(out, x, F: tl.constexpr, BLOCK: tl.constexpr):
    """Program (row, block of columns)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(x + row * 2 * F + at, mask=at < F)
    up = tl.load(x + row * 2 * F + F + at, mask=at < F)
    tl.store(out + row * F + at, rounded(gated(gate, up), gate.dtype), mask=at < F)


def silu_mul(x: Tensor) -> Tensor:
    """x [M, 2 F], gate beside up -> silu(gate) * up, [M, F]."""
    rows, f = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, f)
    launch(_kernel, (rows, cdiv(f, BLOCK)), (out, x), {"F": f, "BLOCK": BLOCK}, 4)
    return out


def variants(arch: int) -> Iterator[Variant]:
    """Intermediate sizes of Llama 3 8B and Qwen 2.5 7B."""
    del arch
    for dtype, f in ((F32, 14336), (F32, 18944), (BF16, 14336)):
        types = {"out": TYPES[dtype], "x": TYPES[dtype]}
        yield variant(f"silu_mul {TYPES[dtype][1:]} {f}", _kernel, types, {"F": f, "BLOCK": BLOCK}, 4)
