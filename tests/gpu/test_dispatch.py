"""What serves CUDA devices, on machines that are only said to have one."""

import ast
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels import dispatch, formats, preferences
from qspec_kernels.backends import cuda as cuda_folder
from qspec_kernels.backends import triton as triton_folder
from tests.gpu.devices import kernel
from tests.kernels.cases import quantized
from tests.test_architecture import signatures

TRITON = sorted(path for path in Path(triton_folder.__path__[0]).glob("[a-z]*.py"))


BY_CUDA = f"linear_w4a16 on cuda: cuda (sm_90), because {preferences.TABLE[0].why}"


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
    ops["cuda", "linear_w4a16"] = kernel("cuda", why_not=lambda capability, sizes=None: "" if sizes else "no")
    dispatch.find.cache_clear()
    assert qk.explain("linear_w4a16", "cuda") == "linear_w4a16 on cuda: triton (sm_90); not cuda: no"
    # sizes are for those who ask for them
    assert qk.explain("linear_w4a16", "cuda", sizes=(1,)) == BY_CUDA
    ops["cuda", "linear_w4a16"] = kernel("cuda", why_not=lambda capability: "")
    assert qk.explain("linear_w4a16", "cuda", sizes=(1,)) == BY_CUDA
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
    assert qk.explain("linear_w4a16", "cuda", phase="prefill") == (
        "linear_w4a16_prefill on cuda: triton (sm_90)"
    )
    assert dispatch.find(*asked, "int4_mma16")() == "cuda"
    # nor where it cannot serve: another byte order, another type, a device it is not for
    assert dispatch.find("linear_w4a16", "cuda", torch.float64, "int4", "prefill").__module__.endswith(
        "torch.linear_w4a16"
    )
    of_prompts.why_not = lambda capability: "not for this one"
    dispatch.find.cache_clear()
    assert dispatch.find(*asked, "int4_mma16", "prefill")() == "cuda"
    assert qk.explain("linear_w4a16", "cuda", phase="prefill") == (
        f"{BY_CUDA}; not linear_w4a16_prefill of triton: not for this one"
    )


@pytest.mark.parametrize("act", [None, "a16", "a8"])
def test_linears_say_how_large_they_are(monkeypatch, rng, act):
    asked = []
    right = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda *given: asked.append(given[-1]) or right(*given))
    dispatch.find.cache_clear()
    weight = torch.randn(6, 64, generator=rng)
    for m in (1, 3):
        packed = quantized("int4", weight, 32).packed if act else weight
        qk.linear(torch.ones(m, 64), packed, **({"act": act} if act else {}))
    dispatch.find.cache_clear()
    # of the weight; never the number of rows
    assert (6, 64) in asked
    assert set(asked) <= {None, (6, 64)}


@pytest.mark.parametrize(
    ("capability", "libraries", "reason"),
    [
        ((9, 0), (), "triton is not installed (PyTorch's builds for GPUs bring it along)"),
        (None, ("triton",), "no NVIDIA device is at hand (CPUs have kernels of their own)"),
        (
            (7, 5),
            ("triton",),
            "needs sm_80 or later; the device is sm_75 (plain PyTorch serves it)",
        ),
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
    assert dispatch._tools_refusal("cuda", (12, 1)) == "no sm_121"
    dispatch.reset()


def test_what_triton_does_not_know_is_left_to_others(device, ops):
    ops["triton", "linear_w4a16"] = kernel("triton")
    unknown = "Triton 3.0 does not know sm_121 (a newer PyTorch brings a newer one)"
    device((12, 1), ("triton", "cupy"), unknown=unknown)
    line = qk.explain("linear_w4a16", "cuda")
    assert line == f"linear_w4a16 on cuda: torch; not cuda: has no such kernel; not triton: {unknown}"
    ops["cuda", "linear_w4a16"] = kernel("cuda")
    assert qk.explain("linear_w4a16", "cuda") == BY_CUDA.replace("sm_90", "sm_121")


def test_what_triton_lacks_is_asked_of_its_assembler(monkeypatch):
    triton = pytest.importorskip("triton")
    dispatch.reset()
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
        assert dispatch._tools_refusal("triton", capability) == ""
    assert dispatch._tools_refusal("triton", (9, 1)) == (
        f"Triton {triton.__version__} does not know sm_91 (a newer PyTorch brings a newer one)"
    )
    compiler = importlib.import_module("qspec_kernels.backends.triton._compiler")
    monkeypatch.setattr(compiler, "_assembler", lambda arch: "/nowhere/ptxas")
    refusal = compiler.why_not((9, 0))
    assert refusal.startswith("Triton's assembler cannot be run: ")
    assert refusal.endswith("(pip install --force-reinstall triton)")
    # from Hopper on it compiles for one architecture, "sm_90a", and for no later one
    monkeypatch.setattr(compiler, "_architectures", lambda assembler: {"sm_80", "sm_90"})
    assert [compiler.why_not((major, 0)) == "" for major in (8, 9)] == [True, False]
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
        "linear_w4a16 on cuda: torch; not cuda: is for NVIDIA's GPUs, and this PyTorch is built for AMD's"
        " (Triton serves both); not triton: no AMD device is at hand (CPUs have kernels of their own)"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert qk.explain("linear_w4a16", "cuda") == (
        "linear_w4a16 on cuda: triton; not cuda: is for NVIDIA's GPUs, and this PyTorch is built for AMD's"
        " (Triton serves both)"
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
