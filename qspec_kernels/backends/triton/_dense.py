"""Linears with dense weights: kernel and launch. Weights are the matrix unit's left operand, as in `_packed`.

A program makes BLOCK_N output features by BLOCK_M tokens from blocks of BLOCK_K along K, in order; splits of
K as in `_packed`. Read per program: BLOCK_N * K weights, BLOCK_M * K of x.
"""

# Triton's language is no typed Python
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton import _tiles
from qspec_kernels.backends.triton._epilogue import store
from qspec_kernels.backends.triton._interpreter import BF16, rounded
from qspec_kernels.backends.triton._launch import Plan, arch_of, launch

BLOCK_K = {torch.bfloat16: 64, torch.float32: 16}


@triton.jit
def _operand(ptrs, cols, k, ROUND: tl.constexpr, EVEN: tl.constexpr):
    """A block of a matrix at ptrs, zero beyond K, as bfloat16 where ROUND, else as float32."""
    block = tl.load(ptrs) if EVEN else tl.load(ptrs, mask=cols < k, other=0)
    return rounded(block.to(tl.float32), tl.bfloat16).to(BF16) if ROUND else block.to(tl.float32)


@triton.jit
def _sum_of_blocks(
    x_ptrs, w_ptrs, cols, first, last, k, ROUND: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """float32 [features, tokens]: blocks `first` to `last` of K."""
    BLOCK_K: tl.constexpr = cols.shape[0]
    acc = tl.zeros((w_ptrs.shape[0], x_ptrs.shape[1]), tl.float32)
    for block in range(first, last):
        start = block * BLOCK_K
        w = _operand(w_ptrs + start, (start + cols)[None, :], k, ROUND, EVEN)
        x = _operand(x_ptrs + start, (start + cols)[:, None], k, ROUND, EVEN)
        acc = tl.dot(w, x, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["m"])
def linear_dense(
    x_ptr, w_ptr, bias_ptr, residual_ptr, out_ptr, m, n, k, ROUND: tl.constexpr,
    EVEN: tl.constexpr, SPLITS: tl.constexpr, APART: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the output; with APART one split of it, as float32 at out_ptr [SPLITS, m, n].

    x [m, k], w [n, k], bias [n] float32 or None, residual and out [m, n].
    """
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_K)
    # rows and tokens beyond the last are read as if they were the last, and not stored
    w_ptrs = w_ptr + tl.minimum(rows, n - 1).to(tl.int64)[:, None] * k + cols[None, :]
    x_ptrs = x_ptr + tl.minimum(tokens, m - 1).to(tl.int64)[None, :] * k + cols[:, None]
    blocks = tl.cdiv(k, BLOCK_K)
    each = tl.cdiv(blocks, SPLITS)
    if APART:
        split = tl.program_id(2)
        last = tl.minimum((split + 1) * each, blocks)
        acc = _sum_of_blocks(x_ptrs, w_ptrs, cols, split * each, last, k, ROUND, EVEN)
        out_ptr += split.to(tl.int64) * m * n
    elif SPLITS > 1:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for split in range(SPLITS):
            last = tl.minimum((split + 1) * each, blocks)
            acc += _sum_of_blocks(x_ptrs, w_ptrs, cols, split * each, last, k, ROUND, EVEN)
    else:
        acc = _sum_of_blocks(x_ptrs, w_ptrs, cols, 0, blocks, k, ROUND, EVEN)
    store(acc, tokens, rows, bias_ptr, residual_ptr, out_ptr, m, n)


def plan_dense(shape: tuple[int, int, int], dtype: torch.dtype, arch: int) -> Plan:
    """The launch for m tokens and a weight [n, k] that computes in bfloat16 or float32; shape is m, n, k."""
    m, n, k = shape
    block_k = BLOCK_K[dtype]
    bf16 = dtype == torch.bfloat16
    step = block_k * dtype.itemsize
    tile = _tiles.linear(m, n, arch, step_bytes=(step, step), integer=False)
    splits = _tiles.splits(n, k, arch)
    apart = splits > 1 and m <= _tiles.APART_TOKENS
    grid = (-(-m // tile.block_m), -(-n // tile.block_n), splits if apart else 1)
    constants = {
        "ROUND": bf16,
        "EVEN": k % block_k == 0,
        "SPLITS": splits,
        "APART": apart,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "BLOCK_K": block_k,
    }
    # float32 has no matrix unit: its dots are fused multiply-adds
    return Plan(constants, tile, grid, fp_fusion=not bf16)


def dense(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """x [M, K] times weight [N, K] transposed, both as numbers of `dtype` -> [M, N] in x's dtype."""
    (n, k), m = weight.shape, x.shape[0]
    out = x.new_empty(m, n)
    if m == 0:
        return out
    plan = plan_dense((m, n, k), dtype, arch_of(x.device))
    return launch(linear_dense, plan, (x, weight), (bias, residual), out, m, n, k)
