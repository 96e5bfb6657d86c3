"""No product and sum of Triton's kernels become one operation with one rounding, but in float32 dots.

Every launch says so to the compiler; whoever leaves it out gets other bits than the other backends.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from qspec_kernels.backends.triton import _dense, _launch, _prefill_dense, _prefill_launch, _rows
from qspec_kernels.backends.triton._interpreter import INTERPRETED
from qspec_kernels.backends.triton._variants import ARCHS
from tests.gpu import build_table
from tests.gpu.test_plans import OPERANDS, mutated

BF16, F32 = torch.bfloat16, torch.float32


class Recorder:
    """In place of a kernel: keeps the options of its launches."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **options: self.options.append(options)


def plans(shape: tuple[int, int, int], arch: int) -> Iterator[_launch.Plan]:
    """Every way to launch a linear whose products are not of float32."""
    for x_bytes, act_groups, mxfp4 in OPERANDS.values():
        for plan in (_launch.plan_packed, _prefill_launch.plan_prefill):
            yield plan(shape, 32, arch, mxfp4=mxfp4, x_bytes=x_bytes, act_groups=act_groups)
    yield _dense.plan_dense(shape, BF16, arch)
    yield _prefill_dense.plan_dense(shape, arch)


@pytest.mark.parametrize("arch", ARCHS)
def test_no_plan_lets_the_compiler_contract(arch):
    for m in (1, 8, 64, 65, 4096):
        for plan in plans((m, 4096, 4096), arch):
            assert plan.fp_fusion is False
            assert plan.options()["enable_fp_fusion"] is False
    # dots without a matrix unit are fused, as the definition has them
    assert _dense.plan_dense((1, 4096, 4096), F32, arch).fp_fusion is True


def launched_rows() -> list[dict[str, Any]]:
    kernel = Recorder()
    _rows.launch(kernel, (1,), (), {"K": 64}, 4)
    return kernel.options


def launched_linear() -> list[dict[str, Any]]:
    """One whose parts along K are added by a launch of its own."""
    kernel = Recorder()
    plan = _dense.plan_dense((2, 64, 4096), BF16, 90)
    assert plan.splits > 1
    with pytest.MonkeyPatch.context() as patch:
        # a mutant has names of its own
        patch.setitem(_launch.add.__globals__, "add_splits", kernel)
        _launch.launch(kernel, plan, (), (None, None), torch.empty(2, 64), 2, 64, 4096)
    assert len(kernel.options) == 2
    return kernel.options


def check() -> None:
    for options in (*launched_rows(), *launched_linear()):
        assert options["enable_fp_fusion"] is False


def test_launches_tell_the_compiler():
    check()


@pytest.mark.parametrize(
    ("module", "name", "old", "new"),
    [
        (_rows, "launch", "enable_fp_fusion=False", "enable_fp_fusion=True"),
        (_launch, "add", "enable_fp_fusion=False", "enable_fp_fusion=True"),
        (_launch, "launch", "**plan.options()", "enable_fp_fusion=True"),
    ],
)
def test_a_launch_that_does_not_is_noticed(monkeypatch, module, name, old, new):
    monkeypatch.setattr(module, name, mutated(getattr(module, name), old, new))
    with pytest.raises(AssertionError):
        check()


def test_what_is_compiled_for_the_table_is_what_is_launched():
    contracted = {
        op for op in build_table.ops() for variant in build_table.variants(op, 90) if variant.fp_fusion
    }
    assert contracted == {"linear_fp32"}


@pytest.mark.skipif(bool(INTERPRETED), reason="kernels are interpreted in this process")
def test_machine_code_shows_it():
    variant = replace(build_table.variants("linear_w4a8", 90)[0], fp_fusion=True)
    entry = build_table.compile_variant(variant, 90)
    committed = build_table.read()["90"][variant.name]
    assert "FFMA: a rounding is left out" in list(build_table.faults(variant, entry, committed))
