"""The linear with a bfloat16 weight in the prefill phase: kernel and launch, with tiles as in `_prefill`.

Both operands come from shared memory; blocks of 64 along K are added in order, and K is never cut.
"""

# Triton's language is no typed Python
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton import _tiles
from qspec_kernels.backends.triton._launch import Plan, arch_of, launch
from qspec_kernels.backends.triton._packed import activations
from qspec_kernels.backends.triton._prefill import store_tile, tile_of

BLOCK_K = 64


@triton.jit(do_not_specialize=["m"])
def linear_dense_prefill(
    x_ptr, w_ptr, bias_ptr, residual_ptr, out_ptr, m, n, k, EVEN: tl.constexpr, STAGES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """One tile of the output. x [m, k] and w [n, k] bfloat16; the rest as in `linear_dense`."""
    tile_n, tile_m = tile_of(m, n, BLOCK_N, BLOCK_M, TOGETHER)
    rows = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # rows and tokens beyond the last are read as if they were the last, and not stored
    row = tl.minimum(rows, n - 1).to(tl.int64)
    token = tl.minimum(tile_m * BLOCK_M + tl.arange(0, BLOCK_M), m - 1).to(tl.int64)
    cols = tl.arange(0, BLOCK_K)
    w_ptrs = w_ptr + row[None, :] * k + cols[:, None]
    x_ptrs = x_ptr + token[None, :] * k + cols[:, None]
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        w = activations(w_ptrs + start, cols + start, k, False, EVEN)
        x = activations(x_ptrs + start, cols + start, k, False, EVEN)
        acc = tl.dot(tl.trans(w), x, acc)
    store_tile(acc, tile_m, rows, bias_ptr, residual_ptr, out_ptr, m, n)


def plan_dense(shape: tuple[int, int, int], arch: int) -> Plan:
    """The launch for m tokens and a weight [n, k]; shape is m, n, k."""
    m, n, k = shape
    widest = 256 if arch // 10 in (9, 10) else 128
    tile = _tiles.prefill(m, n, arch, step_bytes=(2 * BLOCK_K, 2 * BLOCK_K), widest=widest)
    constants = {
        "EVEN": k % BLOCK_K == 0,
        "STAGES": tile.num_stages,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "BLOCK_K": BLOCK_K,
        "TOGETHER": _tiles.TOGETHER,
    }
    return Plan(constants, tile, (-(-m // tile.block_m) * -(-n // tile.block_n), 1, 1), fp_fusion=False)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [M, K] rounded to bfloat16 times weight bfloat16 [N, K] transposed -> [M, N] in x's dtype."""
    (n, k), m = weight.shape, x.shape[0]
    out = x.new_empty(m, n)
    if m == 0:
        return out
    plan = plan_dense((m, n, k), arch_of(x.device))
    return launch(linear_dense_prefill, plan, (x.bfloat16(), weight), (bias, residual), out, m, n, k)
