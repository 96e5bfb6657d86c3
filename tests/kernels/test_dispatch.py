"""Which path serves what, and what is said about it."""

import subprocess
import sys

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels import dispatch, formats
from qspec_kernels.backends.cpp import library
from tests.kernels.cases import quantized, same_bits


def test_importing_looks_at_nothing():
    code = (
        "import sys, qspec_kernels; print([m for m in sys.modules if m.startswith('qspec_kernels.backends')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_chosen_path_serves(backend):
    assert qk.isa() == backend
    for op in ("linear_fp32", "linear_bf16", "linear_w4a8", "linear_mxfp4a8"):
        line = qk.explain(op)
        assert line.startswith(f"{op} on cpu: {'torch' if backend == 'torch' else f'cpp ({backend})'}")
        assert ("QSPEC_CPU_ISA=torch" in line) == (backend == "torch")
        assert "computes in float32" in qk.explain(op, dtype=torch.float64) or backend == "torch"


def test_every_library_has_every_op(backend):
    if backend == "torch":
        pytest.skip("the torch path is what the others are compared with")
    from importlib.resources import files

    torch_ops = {
        path.name.removesuffix(".py")
        for path in files("qspec_kernels.backends.torch").iterdir()
        if path.name.endswith(".py") and not path.name.startswith("_")
    }
    assert len(torch_ops) == 26
    for op in torch_ops:
        assert f"cpp ({backend})" in qk.explain(op)


def test_other_devices_are_served_by_torch():
    assert qk.explain("attention", "mps") == "attention on mps: torch"


@pytest.mark.parametrize("op", ["linear", "linear_w3a3", "library", "_linear", "linear_w4a16_prefill", ""])
def test_what_is_no_op_is_not_explained(op):
    with pytest.raises(
        qk.UsageError, match=f"op is '{op}'; expected one of argmax, attention, .*softmax"
    ) as e:
        qk.explain(op)
    assert "linear_w4a16" in e.value.hint
    assert "prefill" in e.value.hint


def test_a_phase_is_explained(backend):
    for op in ("linear_w4a8", "attention"):
        assert qk.explain(op, phase="prefill") == qk.explain(op)
    with pytest.raises(qk.UsageError, match="phase is 'verify'; expected one of decode, prefill"):
        qk.explain("linear_w4a8", phase="verify")


def test_unknown_library(monkeypatch):
    monkeypatch.setenv(library.ENVIRONMENT, "avx1024")
    dispatch.reset()
    try:
        with pytest.raises(qk.UsageError, match="avx1024"):
            qk.rmsnorm(torch.ones(1, 4), torch.ones(4))
    finally:
        monkeypatch.undo()
        dispatch.reset()


def test_missing_flags_are_named(monkeypatch):
    monkeypatch.setenv(library.ENVIRONMENT, "amx")
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset({"avx2", "fma", "f16c"}))
    dispatch.reset()
    try:
        with pytest.raises(qk.UsageError, match="avx512f"):
            qk.isa()
    finally:
        monkeypatch.undo()
        dispatch.reset()


def test_no_library_is_said_once(monkeypatch):
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    monkeypatch.setattr(library, "available", lambda: (False, "no kernel library was built\nrebuild"))
    dispatch.reset()
    try:
        with pytest.warns(UserWarning, match="no kernel library was built"):
            qk.rmsnorm(torch.ones(1, 4), torch.ones(4))
        qk.silu_mul(torch.ones(1, 4))
        assert qk.explain("silu_mul") == "silu_mul on cpu: torch; not cpp: no kernel library was built"
    finally:
        monkeypatch.undo()
        dispatch.reset()


@pytest.mark.parametrize("kind", ["int4", "mxfp4"])
def test_device_layout(backend, rng, kind):
    made = quantized(kind, torch.randn(7, 100, generator=rng), 32)
    expected = kind if backend == "torch" else f"{kind}_tiles16"
    assert made.packed.format == expected
    assert qk.to_device_layout(made.packed, "cpu").format == expected
    codes = [formats.get(p.format).unpack(p)[0] for p in (made.packed, formats.convert(made.packed, kind))]
    assert torch.equal(*codes)


def test_slow_byte_order_is_said_once(backend, rng):
    if backend == "torch":
        pytest.skip("the torch path reads the canonical order")
    made = quantized("int4", torch.randn(7, 100, generator=rng), 32, on_device=False)
    x = torch.randn(3, 100, generator=rng)
    with pytest.warns(
        UserWarning, match="linear_w4a8 runs on the plain torch path because the weight is packed"
    ):
        slow = qk.linear(x, made.packed, act="a8")
    assert same_bits(qk.linear(x, made.packed, act="a8"), slow)
    assert same_bits(qk.linear(x, qk.to_device_layout(made.packed), act="a8"), slow)


def test_unreadable_byte_order(torch_backend, rng):
    made = quantized("int4", torch.randn(7, 100, generator=rng), 32)
    tiles = formats.convert(made.packed, "int4_tiles16")
    with pytest.raises(qk.KernelUnavailable, match="torch: reads int4, not int4_tiles16") as error:
        qk.linear(torch.ones(1, 100), tiles)
    assert "to_device_layout" in error.value.hint


@pytest.mark.parametrize("act", ["a16", "a8", "a4"])
def test_the_phase_changes_nothing_on_a_cpu(backend, rng, act):
    x, weight = torch.randn(3, 100, generator=rng), torch.randn(7, 100, generator=rng)
    packed = quantized("int4", weight, 32).packed
    for phase in ("decode", "prefill"):
        assert same_bits(qk.linear(x, packed, act=act, phase=phase), qk.linear(x, packed, act=act))
        assert same_bits(qk.linear(x, weight, phase=phase), qk.linear(x, weight))
    name = f"linear_w4{act}"
    found = dispatch.find(name, "cpu", torch.float32, packed.format)
    assert dispatch.find(name, "cpu", torch.float32, packed.format, "prefill") is found


def test_unknown_phase():
    with pytest.raises(qk.UsageError, match="phase is 'verify'; expected one of decode, prefill"):
        qk.linear(torch.ones(1, 4), torch.ones(2, 4), phase="verify")


def test_unknown_precision():
    with pytest.raises(qk.UsageError, match="unknown precision 'w3a3'") as error:
        qk.precision("w3a3")
    assert "mxfp4a8" in error.value.hint
