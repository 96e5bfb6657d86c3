"""What serves CUDA devices, on machines that are only said to have one."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels import dispatch, formats
from qspec_kernels.backends import triton as triton_folder
from tests.test_architecture import signatures

TRITON = sorted(path for path in Path(triton_folder.__path__[0]).glob("[a-z]*.py"))
Device = Callable[..., None]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """device(capability, libraries): from here on there is a GPU of that capability, with those libraries."""

    def install(capability: tuple[int, int] | None, libraries: tuple[str, ...] = ("triton",)) -> None:
        right = dispatch.find_spec
        monkeypatch.setattr(dispatch, "_capability", lambda _: capability)
        monkeypatch.setattr(
            dispatch,
            "find_spec",
            lambda name: name in libraries or None if name in ("triton", "cupy") else right(name),
        )
        dispatch.find.cache_clear()

    yield install
    monkeypatch.undo()
    dispatch.reset()


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], SimpleNamespace]:
    """Files of the GPU backends by (backend, op), in place of those on disk; tests add theirs."""
    files: dict[tuple[str, str], SimpleNamespace] = {}
    has, module = dispatch._has, dispatch._module
    gpu = ("cuda", "triton")
    monkeypatch.setattr(
        dispatch, "_has", lambda backend, op: (backend, op) in files if backend in gpu else has(backend, op)
    )
    monkeypatch.setattr(
        dispatch, "_module", lambda backend, op: files[backend, op] if backend in gpu else module(backend, op)
    )
    return files


def kernel(name: str, reads: str = "int4_mma16", **more: object) -> SimpleNamespace:
    """A backend file with a function that says which it is."""
    return SimpleNamespace(linear_w4a16=lambda: name, READS=reads, **more)


def test_cuda_comes_before_triton_and_triton_before_torch(device, ops):
    device((9, 0), ("triton", "cupy"))
    assert qk.explain("linear_w4a16", "cuda") == (
        "linear_w4a16 on cuda: torch; not cuda: has no such kernel; not triton: has no such kernel"
    )
    ops["triton", "linear_w4a16"] = kernel("triton")
    assert qk.explain("linear_w4a16", "cuda") == (
        "linear_w4a16 on cuda: triton (sm_90); not cuda: has no such kernel"
    )
    assert dispatch.find("linear_w4a16", "cuda", torch.float32, "int4_mma16")() == "triton"
    ops["cuda", "linear_w4a16"] = kernel("cuda")
    dispatch.find.cache_clear()
    assert qk.explain("linear_w4a16", "cuda") == "linear_w4a16 on cuda: cuda (sm_90)"
    assert dispatch.find("linear_w4a16", "cuda", torch.float32, "int4_mma16")() == "cuda"


@pytest.mark.parametrize(
    ("capability", "libraries", "reason"),
    [
        ((9, 0), (), "triton is not installed"),
        (None, ("triton",), "no NVIDIA device is at hand"),
        ((7, 5), ("triton",), "needs sm_80 or later; the device is sm_75"),
        ((10, 3), ("triton",), "no image for sm_103"),
    ],
)
def test_refusals_say_why(device, ops, capability, libraries, reason):
    def why_not(capability: tuple[int, int]) -> str:
        return "" if capability == (9, 0) else "no image for sm_{}{}".format(*capability)

    ops["triton", "linear_w4a16"] = kernel("triton", why_not=why_not)
    device(capability, libraries)
    line = qk.explain("linear_w4a16", "cuda")
    assert line == f"linear_w4a16 on cuda: torch; not cuda: has no such kernel; not triton: {reason}"
    device((9, 0))
    assert "triton (sm_90)" in qk.explain("linear_w4a16", "cuda")


def test_float64_is_served_by_torch(device, ops):
    device((9, 0))
    ops["triton", "linear_w4a16"] = kernel("triton")
    assert "torch; " in qk.explain("linear_w4a16", "cuda", torch.float64)
    with pytest.raises(qk.KernelUnavailable, match="triton: computes in float32"):
        dispatch.find("linear_w4a16", "cuda", torch.float64, "int4_mma16")


@pytest.mark.parametrize("kind", ["int4", "mxfp4"])
def test_weights_go_into_the_order_of_gpus(device, kind, monkeypatch):
    pytest.importorskip("triton")
    module, weight = formats.get(kind), torch.randn(20, 100)
    packed = module.pack(*(module.quantize(weight, 32) if kind == "int4" else module.quantize(weight)), 32)
    # a packed weight that says it lies on a GPU
    monkeypatch.setattr(formats.PackedWeight, "device", torch.device("cuda"))
    device((8, 0))
    there = qk.to_device_layout(packed)
    assert there.format == f"{kind}_mma16"
    assert torch.equal(formats.dequantize(there), formats.dequantize(packed))
    device((8, 0), ())
    assert qk.to_device_layout(packed).format == kind


def test_triton_takes_what_torch_takes():
    torch_ops, triton_ops = signatures("torch"), signatures("triton")
    assert set(triton_ops) == {path.stem for path in TRITON}
    different = {
        name: (names, torch_ops[name]) for name, names in triton_ops.items() if names != torch_ops[name]
    }
    assert not different


@pytest.mark.parametrize("path", TRITON, ids=lambda path: path.stem)
def test_triton_ops_say_what_they_compile(path):
    names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert {path.stem, "variants"} <= names
