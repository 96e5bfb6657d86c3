"""What linears end with: bias, rounding, residual, and the sum of splits."""

# Triton's language is no typed Python
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from qspec_kernels.backends.triton._interpreter import rounded


@triton.jit
def finished(acc, bias, residual, OUT: tl.constexpr):
    """acc + bias, float32, rounded to OUT; the residual, of that type, is added to what has been rounded."""
    if bias is not None:
        acc += bias
    out = rounded(acc, OUT)
    if residual is not None:
        out = rounded(residual.to(tl.float32) + out.to(tl.float32), OUT)
    return out


@triton.jit
def store(acc, tokens, rows, bias_ptr, residual_ptr, out_ptr, m, n):
    """acc [features, tokens] into out [m, n], finished."""
    inside = (rows < n)[:, None] & (tokens < m)[None, :]
    places = tokens.to(tl.int64)[None, :] * n + rows[:, None]
    bias, residual = None, None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + rows, mask=rows < n)[:, None]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + places, mask=inside)
    tl.store(out_ptr + places, finished(acc, bias, residual, out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["m"])
def add_splits(
    parts_ptr, bias_ptr, residual_ptr, out_ptr, m, n, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out [m, n] = parts [SPLITS, m, n] added in order, finished."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.program_id(1).to(tl.int64)
    inside = rows < n
    places = token * n + rows
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        acc += tl.load(parts_ptr + split * (m.to(tl.int64) * n) + places, mask=inside)
    bias, residual = None, None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + rows, mask=inside)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + places, mask=inside)
    tl.store(out_ptr + places, finished(acc, bias, residual, out_ptr.dtype.element_ty), mask=inside)
