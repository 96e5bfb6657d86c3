"""The assembler that Triton brings, as its versions tell of it."""

import importlib
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton

import qspec_kernels as qk
from qspec_kernels import dispatch
from qspec_kernels.backends.triton import _compiler
from tests.gpu.devices import Device


def test_one_assembler_for_all_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Triton 3.5 has it, whose function takes no architecture."""
    nvidia: Any = importlib.import_module("triton.backends.nvidia.compiler")
    own = nvidia.get_ptxas(80)
    monkeypatch.setattr(nvidia, "get_ptxas", lambda: own)
    assert {_compiler._assembler(arch) for arch in (80, 100)} == {own.path}
    assert _compiler.why_not((8, 0)) == ""


@pytest.mark.parametrize("amd", [False, True])
def test_an_old_triton_is_refused_before_its_kernels_are_imported(
    device: Device, monkeypatch: pytest.MonkeyPatch, amd: bool
) -> None:
    right = dispatch._tools_refusal
    device((9, 0))
    monkeypatch.setattr(dispatch, "_tools_refusal", right)
    right.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "7.1" if amd else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton, "__version__", "3.4.0")
    module = dispatch._module

    def imported(backend: str, op: str) -> Any:
        assert backend != "triton"
        return module(backend, op)

    monkeypatch.setattr(dispatch, "_module", imported)
    old = "Triton 3.4.0 is older than 3.5 (PyTorch 2.9 and later bring a newer one)"
    line = qk.explain("linear_w4a16", "cuda")
    assert line.startswith("linear_w4a16 on cuda: torch; not cuda: ")
    assert line.endswith(f"; not triton: {old}")
