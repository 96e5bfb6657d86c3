"""What decides the sums of a linear is the same for any number of tokens, for every one that is decoded.

Instruction, order along K, groups, parts that K is cut into: constants of the kernel that follow from shape,
format and architecture. A constant that may follow the number of tokens is named here.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from qspec_kernels.backends.cuda import _float
from tests.gpu.emulation.cases import LAUNCHERS, kind_of

pytest.importorskip("triton")

from qspec_kernels.backends.triton._dense import plan_dense
from qspec_kernels.backends.triton._launch import Plan, plan_packed
from qspec_kernels.backends.triton._prefill_launch import plan_prefill
from qspec_kernels.backends.triton._variants import ARCHS

# around powers of two tiles change
BORDERS = [1, *(2**i + d for i in range(3, 11) for d in (-1, 0, 1))]
# every number on those with little and much shared memory, narrow and wide instructions
TOKENS = {arch: range(1, 1025) if arch in (86, 90, 100) else BORDERS for arch in ARCHS}
# few and many features, K that ends within a block or a group
SHAPES = ((4096, 4096), (28672, 8192), (96, 100))
# rows and columns of a tile, how far it loads ahead, who adds the parts and what leaves the cache first
TRITON_TILES = {"BLOCK_N", "BLOCK_M", "STAGES", "APART", "EVICT"}
# tokens and outputs of a block, the warps that share K's parts, buffers
CUDA_TILES = {"TOKEN_TILES", "WARPS_N", "WARPS_K", "STAGES"}
# bytes of an element of x, scales of a token, and whether the weight is mxfp4
OPERANDS = {
    "w4a16": (2, 0, False),
    "w4a16 of float32": (4, 0, False),
    "w4a8": (1, 1, False),
    "w4a4": (1, 32, False),
    "mxfp4a16": (2, 0, True),
    "mxfp4a8": (1, 1, True),
}


def decided(plans: Iterable[Plan]) -> set[Any]:
    """What sums are made of, in all of these launches."""
    return {
        (
            frozenset(
                (name, str(value)) for name, value in plan.constants.items() if name not in TRITON_TILES
            ),
            plan.fp_fusion,
        )
        for plan in plans
    }


def packed_plans(
    plan_of: Callable[..., Plan], shape: tuple[int, int], operand: str, group: int, arch: int
) -> list[Plan]:
    """The launches of a weight [n, k] for every number of tokens."""
    x_bytes, act_groups, mxfp4 = OPERANDS[operand]
    return [
        plan_of((m, *shape), group, arch, mxfp4=mxfp4, x_bytes=x_bytes, act_groups=act_groups)
        for m in TOKENS[arch]
    ]


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("arch", TOKENS)
def test_tokens_decide_no_sum_of_triton(operand, arch):
    for shape in SHAPES:
        for group in (32,) if OPERANDS[operand][2] else (128, shape[1]):
            plans = packed_plans(plan_packed, shape, operand, group, arch)
            assert len(decided(plans)) == 1
            assert len({plan.tile for plan in plans}) > 1
            # parts that lie apart are all the parts there are
            assert {plan.splits for plan in plans} <= {1, plans[0].constants["SPLITS"]}
            if OPERANDS[operand][1] == 0:
                # what wide instructions take; of narrower tiles others would add in another order
                assert min(plan.tile.block_n for plan in plans) >= 64
                assert {plan.tile.block_n // plan.tile.num_warps for plan in plans} == {16}


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("arch", TOKENS)
def test_tokens_decide_no_sum_of_a_prompt(operand, arch):
    plans = packed_plans(plan_prefill, (4096, 4096), operand, 32, arch)
    assert len(decided(plans)) == 1
    assert len({plan.tile for plan in plans}) > 1
    assert {plan.splits for plan in plans} == {1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("arch", TOKENS)
def test_tokens_decide_no_sum_of_dense_weights(dtype, arch):
    for shape in SHAPES:
        plans = [plan_dense((m, *shape), dtype, arch) for m in TOKENS[arch]]
        assert len(decided(plans)) == 1
        assert min(plan.tile.block_n for plan in plans) >= 64
        assert {plan.splits for plan in plans} <= {1, plans[0].constants["SPLITS"]}


@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name.startswith("linear")])
@pytest.mark.parametrize("arch", TOKENS)
def test_tokens_decide_no_sum_of_cuda(name, arch):
    for n, k in SHAPES:
        for group in (32,) if kind_of(name) == "mxfp4" else (128, k):
            found = [LAUNCHERS[name].kernels(m, n, k, group, arch)[0] for m in TOKENS[arch]]
            constants = [dict(kernel.constants) for kernel in found]
            assert len({frozenset(c.items() - {(t, c[t]) for t in CUDA_TILES}) for c in constants}) == 1
            assert len({(kernel.name, kernel.parts) for kernel in found}) == 1
            if name.endswith("a16"):
                # a block takes whole rounds of the parts
                assert all(c["SPLIT"] % c["WARPS_K"] == 0 for c in constants)


def mutated(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """The function with a piece of its source replaced."""
    source = inspect.getsource(function)
    assert source.count(old) == 1
    space = dict(inspect.unwrap(function).__globals__)
    exec(source.replace(old, new), space)
    return space[function.__name__]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_tiles.splits(n, k, arch)", "_tiles.splits(n * (1 + m // 1024), k, arch)"),
        ("order_of(arch, integer)", "order_of(arch if m < 1024 else 80, integer)"),
        ("group_size >= k", "group_size >= k or m == 321"),
        ("fp_fusion=False", "fp_fusion=m > 64"),
    ],
)
def test_a_plan_that_follows_tokens_is_noticed(old, new):
    wrong = mutated(plan_packed, old, new)
    assert len(decided(packed_plans(wrong, (4096, 4096), "w4a16", 128, 90))) == 2


def test_a_kernel_that_follows_tokens_is_noticed(monkeypatch):
    monkeypatch.setattr(
        _float,
        "kernel",
        mutated(_float.kernel, "float_split(*shape)", "float_split(*shape) // (1 + m // 1024)"),
    )
    with pytest.raises(AssertionError):
        test_tokens_decide_no_sum_of_cuda("linear_w4a16", 90)
