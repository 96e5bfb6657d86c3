"""What serves CUDA devices, on machines that are only said to have one."""

import ast
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels import dispatch, formats
from qspec_kernels.backends import cuda as cuda_folder
from qspec_kernels.backends import triton as triton_folder
from tests.test_architecture import signatures

TRITON = sorted(path for path in Path(triton_folder.__path__[0]).glob("[a-z]*.py"))
Device = Callable[..., None]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """device(capability, libraries): from here on there is a GPU of that capability, with those libraries,
    and where `lacking` is empty with all that CUDA sources need."""

    def install(
        capability: tuple[int, int] | None, libraries: tuple[str, ...] = ("triton",), lacking: str = ""
    ) -> None:
        right = dispatch.find_spec
        monkeypatch.setattr(dispatch, "_capability", lambda _: capability)
        monkeypatch.setattr(dispatch, "_cuda_refusal", lambda _: lacking)
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


def test_a_prefill_has_kernels_of_its_own(device, ops):
    device((9, 0), ("triton", "cupy"))
    ops["cuda", "linear_w4a16"] = kernel("cuda")
    ops["triton", "linear_w4a16"] = kernel("triton")
    of_prompts = SimpleNamespace(linear_w4a16_prefill=lambda: "prefill", READS="int4_mma16")
    asked = ("linear_w4a16", "cuda", torch.float32)
    # without such a file, the phase changes nothing
    assert dispatch.find(*asked, "int4_mma16", "prefill") is dispatch.find(*asked, "int4_mma16")
    ops["triton", "linear_w4a16_prefill"] = of_prompts
    dispatch.find.cache_clear()
    assert dispatch.find(*asked, "int4_mma16", "prefill")() == "prefill"
    assert dispatch.find(*asked, "int4_mma16")() == "cuda"
    # nor where it cannot serve: another byte order, another type, a device it is not for
    assert dispatch.find("linear_w4a16", "cuda", torch.float64, "int4", "prefill").__module__.endswith(
        "torch.linear_w4a16"
    )
    of_prompts.why_not = lambda capability: "not for this one"
    dispatch.find.cache_clear()
    assert dispatch.find(*asked, "int4_mma16", "prefill")() == "cuda"


@pytest.mark.parametrize(
    ("capability", "libraries", "reason"),
    [
        ((9, 0), (), "triton is not installed (PyTorch's builds for GPUs bring it along)"),
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


def test_what_cuda_lacks_leaves_the_op_to_triton(device, ops):
    ops["cuda", "linear_w4a16"], ops["triton", "linear_w4a16"] = kernel("cuda"), kernel("triton")
    lacking = "nvidia-cuda-nvrtc was not found (pip install 'qspec[cuda]')"
    device((9, 0), ("triton", "cupy"), lacking)
    assert qk.explain("linear_w4a16", "cuda") == (
        f"linear_w4a16 on cuda: triton (sm_90); not cuda: {lacking}"
    )
    assert dispatch.find("linear_w4a16", "cuda", torch.float32, "int4_mma16")() == "triton"
    device((9, 0))
    assert qk.explain("linear_w4a16", "cuda") == (
        "linear_w4a16 on cuda: triton (sm_90); not cuda: cupy is not installed (pip install 'qspec[cuda]')"
    )


def test_what_cuda_lacks_is_asked_of_its_compiler(monkeypatch):
    nvrtc = importlib.import_module("qspec_kernels.backends.cuda._nvrtc")
    monkeypatch.setattr(importlib.import_module("qspec_kernels.backends.cuda._launch"), "_cupy", lambda: None)
    monkeypatch.setattr(nvrtc, "why_not", lambda arch: f"no sm_{arch}")
    dispatch.reset()
    assert dispatch._cuda_refusal((12, 1)) == "no sm_121"
    dispatch.reset()


def test_amd_is_served_by_triton(device, ops, monkeypatch):
    def why_not(capability: tuple[int, int]) -> str:
        return "no image for an NVIDIA GPU like that"

    for backend in ("cuda", "triton"):
        ops[backend, "linear_w4a16"] = kernel(backend, why_not=why_not)
    # what an MI300 says of itself is no capability of NVIDIA's
    device(None, ("triton", "cupy"))
    monkeypatch.setattr(torch.version, "hip", "7.1")
    assert qk.explain("linear_w4a16", "cuda") == (
        "linear_w4a16 on cuda: torch; not cuda: is for NVIDIA's GPUs, and this PyTorch is built for AMD's;"
        " not triton: no AMD device is at hand"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert qk.explain("linear_w4a16", "cuda") == (
        "linear_w4a16 on cuda: triton; not cuda: is for NVIDIA's GPUs, and this PyTorch is built for AMD's"
    )
    assert dispatch.find("linear_w4a16", "cuda", torch.float32, "int4_mma16")() == "triton"
    assert "torch; " in qk.explain("linear_w4a16", "cuda", torch.float64)
    device(None, ())
    assert "triton is not installed" in qk.explain("linear_w4a16", "cuda")


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


def test_every_file_of_cuda_is_an_op():
    # the path is the registration: what begins with no underscore would be found as an op
    assert set(signatures("cuda")) == {path.stem for path in Path(cuda_folder.__path__[0]).glob("[a-z]*.py")}


def test_triton_takes_what_torch_takes():
    torch_ops, triton_ops = signatures("torch"), signatures("triton")
    assert set(triton_ops) == {path.stem for path in TRITON}
    ordinary = {name: torch_ops[name.removesuffix("_prefill")] for name in triton_ops}
    assert triton_ops == ordinary


@pytest.mark.parametrize("path", TRITON, ids=lambda path: path.stem)
def test_triton_ops_say_what_they_compile(path):
    names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert {path.stem, "variants"} <= names
