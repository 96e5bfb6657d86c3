"""Rows of dense linears in the decode phase: the same bits from every tile, and whoever adds splits up."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec_kernels.backends.triton import _dense, _launch
from qspec_kernels.backends.triton.linear_bf16 import linear_bf16
from qspec_kernels.backends.triton.linear_fp32 import linear_fp32
from tests.gpu.interpreted.served import sequential_dots
from tests.gpu.interpreted.test_linear import COUNTS, check_rows
from tests.kernels.cases import spread

pytestmark = pytest.mark.usefixtures("poisoned")

# a tail along K, and a last split that is shorter
N, K = 5, 2100
OPS = {torch.bfloat16: linear_bf16, torch.float32: linear_fp32}


@pytest.fixture(autouse=True)
def matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are added up as matrix units do."""
    sequential_dots(monkeypatch)


def case(rng: torch.Generator, dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A linear as a function of x, and an x whose sums show the order they were made in."""
    weight, bias = torch.randn(N, K, generator=rng).to(dtype), torch.randn(N, generator=rng)
    x = spread(torch.randn(65, K, generator=rng), rng)
    return lambda some: OPS[dtype](some, weight, bias, None), x


@pytest.mark.parametrize("dtype", OPS, ids=str)
def test_rows_do_not_depend_on_each_other(rng, dtype):
    few, many = (_dense.plan_dense((m, N, K), dtype, 80) for m in (COUNTS[-1], 65))
    # splits that are added up, and a program that takes all of them
    assert (few.splits, many.splits, many.constants["SPLITS"]) == (4, 1, 4)
    check_rows(*case(rng, dtype), COUNTS)


def _one_sum_for_many(right, shape, dtype, arch):
    plan = right(shape, dtype, arch)
    return plan if plan.constants["APART"] else replace(plan, constants=plan.constants | {"SPLITS": 1})


@triton.jit
def _last_block_first(
    x_ptrs, w_ptrs, cols, first, last, k, ROUND: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    acc = tl.zeros((w_ptrs.shape[0], x_ptrs.shape[1]), tl.float32)
    for block in range(first, last):
        start = (first + last - 1 - block if x_ptrs.shape[1] == 64 else block) * cols.shape[0]
        w = _dense._operand(w_ptrs + start, (start + cols)[None, :], k, ROUND, EVEN)
        x = _dense._operand(x_ptrs + start, (start + cols)[:, None], k, ROUND, EVEN)
        acc = tl.dot(w, x, acc, input_precision="ieee")
    return acc


@triton.jit
def _last_split_first(
    parts_ptr, bias_ptr, residual_ptr, out_ptr, m, n, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    rows = tl.arange(0, BLOCK)
    inside = rows < n
    places = tl.program_id(1) * n + rows
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS - 1, -1, -1):
        acc += tl.load(parts_ptr + split * m * n + places, mask=inside)
    tl.store(out_ptr + places, acc + tl.load(bias_ptr + rows, mask=inside), mask=inside)


@pytest.mark.parametrize(
    ("module", "name", "mutant"),
    [
        (_dense, "plan_dense", partial(_one_sum_for_many, _dense.plan_dense)),
        (_dense, "_sum_of_blocks", _last_block_first),
        (_launch, "add_splits", _last_split_first),
    ],
    ids=["no splits", "blocks", "splits"],
)
def test_another_order_is_caught(rng, monkeypatch, module, name, mutant):
    monkeypatch.setattr(module, name, mutant)
    with pytest.raises(AssertionError, match="1 rows"):
        check_rows(*case(rng, torch.bfloat16), (1,))
