"""Rotary position embedding, halves paired."""

# constants and loops of device code are Triton's own
# pyright: reportGeneralTypeIssues=false

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton._interpreter import rounded
from qspec_kernels.backends.triton._rope import turned
from qspec_kernels.backends.triton._rows import BF16, F32, TYPES, launch, variant
from qspec_kernels.backends.triton._sizes import cdiv, next_power_of_2
from qspec_kernels.backends.triton._variants import Variant

TILE = 512


@triton.jit
def _kernel(
    out, x, positions, inv_freq, scaling, H: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """Program (token, HEADS of its heads)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    at = (token * H + head) * (2 * HALF) + pair
    mask = (head < H) & (pair < HALF)
    first, second = tl.load(x + at, mask=mask), tl.load(x + at + HALF, mask=mask)
    new_first, new_second = turned(first, second, tl.load(positions + token), inv_freq, pair, scaling, HALF)
    tl.store(out + at, rounded(new_first, first.dtype), mask=mask)
    tl.store(out + at + HALF, rounded(new_second, first.dtype), mask=mask)


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor, scaling: float) -> Tensor:
    """x [T, H, D], positions int32 [T], inv_freq float32 [D / 2] -> [T, H, D] in x's dtype."""
    tokens, heads, _ = x.shape
    out = torch.empty_like(x)
    constants = _constants(heads, x.shape[2])
    grid = (tokens, cdiv(heads, constants["HEADS"]))
    launch(_kernel, grid, (out, x, positions, inv_freq, scaling), constants, 1)
    return out


def _constants(heads: int, d: int) -> dict[str, int]:
    pairs = next_power_of_2(d // 2)
    return {"H": heads, "HALF": d // 2, "HEADS": max(1, TILE // 2 // pairs), "PAIRS": pairs}


def variants(arch: int) -> Iterator[Variant]:
    """The query heads of Llama 3 8B and Qwen 2.5 7B."""
    del arch
    for dtype, heads in ((F32, 32), (F32, 28), (BF16, 32)):
        types = {"out": TYPES[dtype], "x": TYPES[dtype], "positions": "*i32", "inv_freq": "*fp32"}
        types |= {"scaling": "fp32"}
        yield variant(f"rope {TYPES[dtype][1:]} {heads} x 128", _kernel, types, _constants(heads, 128), 1)
