"""AMD's GPUs: packed linears compiled for them, who know no PTX, and launches that they take."""

import importlib
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from qspec_kernels.backends.triton import _launch, _rows  # noqa: E402
from tests.gpu import build_table  # noqa: E402

TARGET = GPUTarget("hip", "gfx942", 64)


def compiled(op: str, folder: str, target: GPUTarget) -> dict[str, str]:
    """The stages of what an op launches for 64 tokens."""
    module = importlib.import_module(f"qspec_kernels.backends.triton.{op}")
    variant = next(variant for variant in module.variants(86) if variant.name.endswith("m=64"))
    names = variant.kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    source = ASTSource(variant.kernel, signature, dict(variant.constexprs))
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        return triton.compile(source, target=target, options=variant.options()).asm


@pytest.mark.parametrize(("op", "opcode"), [("linear_w4a8", "v_mfma_i32"), ("linear_mxfp4a16", "v_mfma_f32")])
def test_packed_linears(tmp_path, monkeypatch, op, opcode):
    driver = SimpleNamespace(get_current_target=lambda: TARGET)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    stages = compiled(op, str(tmp_path / "amd"), TARGET)
    assert opcode in stages["amdgcn"]
    assert "inline_asm" not in stages["ttir"]
    # without an AMD GPU there is PTX, at which the compiler for AMD's ends the process
    monkeypatch.undo()
    assert "inline_asm" in compiled(op, str(tmp_path / "other"), GPUTarget("cuda", 86, 32))["ttir"]


def test_launches_are_of_a_size_that_amds_devices_take(monkeypatch):
    def launched() -> tuple[int, list[int]]:
        return _launch.arch_of(torch.device("cuda")), [_rows.warps_of(count) for count in (4096, 32768)]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    monkeypatch.setattr(torch.version, "hip", None)
    assert launched() == (94, [8, 32])
    monkeypatch.setattr(torch.version, "hip", "7.1")
    # gfx942 is no successor of sm_90
    assert launched() == (86, [8, 16])
    for op in build_table.ops():
        assert max(64 * one.num_warps for one in build_table.variants(op, 86)) <= 1024, op
