"""Compiling, caching and launching CUDA kernels, with NVIDIA's compiler and without a GPU."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cuda import pathfinder

from qspec_kernels.backends.cuda import _compile, _launch, _nvrtc
from qspec_kernels.backends.cuda._compile import Kernel, cubin, options
from qspec_kernels.errors import KernelUnavailable, QSpecError
from tests.gpu import build_table_cuda
from tests.gpu.emulation.cases import LAUNCHERS


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of compiled kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "qspec" / "cuda"


@pytest.fixture
def kernel():
    """A small kernel, quickly compiled."""
    from qspec_kernels.backends.cuda.hadamard_quantize_act import kernel

    return kernel(16, 16, 1, 16, bf16=False, aligned=True)


def test_compiled_once_for_all_that_decides(cache, kernel, monkeypatch):
    compiled = []
    real = _nvrtc.compile
    monkeypatch.setattr(_nvrtc, "compile", lambda *given: compiled.append(given) or real(*given))
    path = cubin(kernel, "sm_90")
    assert path.parent == cache
    assert path.read_bytes()[:4] == b"\x7fELF"
    assert cubin(kernel, "sm_90") == path
    assert len(compiled) == 1
    others = {
        cubin(kernel, "sm_80"),
        cubin(replace(kernel, constants=(*kernel.constants, ("UNUSED", 1))), "sm_90"),
    }
    monkeypatch.setattr(Kernel, "source", lambda self, old=Kernel.source: old(self) + "// changed\n")
    others.add(cubin(kernel, "sm_90"))
    monkeypatch.setattr(_nvrtc, "version", lambda: (99, 0))
    others.add(cubin(kernel, "sm_90"))
    assert len(compiled) == 1 + len(others) == 5
    assert path not in others
    assert {file.suffix for file in cache.iterdir()} == {".cubin"}


def test_processes_may_compile_the_same_at_once(cache, kernel):
    made = []
    # both get past the look into the empty cache before either has written
    both = threading.Barrier(2)

    def compile_slowly(*given, real=_nvrtc.compile):
        both.wait()
        return real(*given)

    def run():
        made.append(cubin(kernel, "sm_90"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_nvrtc, "compile", compile_slowly)
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert made[0] == made[1]
    assert list(cache.iterdir()) == made[:1]


def test_no_compilation_while_a_graph_is_captured(cache, kernel, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(KernelUnavailable, match="a CUDA graph is being captured") as error:
        cubin(kernel, "sm_90")
    assert "qspec_kernels.warmup" in error.value.hint
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    cubin(kernel, "sm_90")


def test_a_source_that_does_not_compile_shows_the_messages():
    with pytest.raises(
        QSpecError, match=r"bad\.cu does not compile with .*sm_90(.|\n)*identifier \"nonsense\""
    ):
        _nvrtc.compile("int x = nonsense;", "bad.cu", ["--gpu-architecture=sm_90"])


def test_subnormals_and_roundings_are_kept(kernel):
    words = " ".join(options(kernel, "sm_90"))
    assert "--ftz=false" in words
    assert "--fmad=false" in words


class FakeFunction:
    """What CuPy gives for a kernel; remembers how it is called."""

    def __init__(self):
        self.max_dynamic_shared_size_bytes = 0
        self.calls = []

    def __call__(self, grid, block, args, *, shared_mem, stream):
        self.calls.append((grid, block, args, shared_mem, stream.ptr))


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of capability 9.0 that runs nothing; the functions that CuPy was asked for, by name."""
    functions = {}

    def module(path):
        assert path.endswith(".cubin")
        return SimpleNamespace(get_function=lambda name: functions.setdefault((name, path), FakeFunction()))

    cupy = SimpleNamespace(RawModule=module, cuda=SimpleNamespace(Device=lambda index: threading.Lock()))
    monkeypatch.setattr(_launch, "_cupy", lambda: cupy)
    monkeypatch.setattr(torch.cuda, "device", lambda device: threading.Lock())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=1234))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    _launch.arch.cache_clear()
    _launch._function.cache_clear()
    yield functions
    _launch.arch.cache_clear()
    _launch._function.cache_clear()


def test_a_launch(cache, kernel, gpu):
    x, out = torch.ones(3, 16), torch.empty(3, 16)
    _launch.launch(kernel, (3, 1), (out, x, None, 7, 0.5))
    _launch.launch(kernel, (0, 1), (out, x, None, 7, 0.5))
    (function,) = gpu.values()
    ((grid, block, words, shared, stream),) = function.calls
    assert (grid, block, shared, stream) == ((3, 1), (kernel.threads,), kernel.shared_bytes, 1234)
    assert function.max_dynamic_shared_size_bytes == kernel.shared_bytes
    assert words == (out.data_ptr(), x.data_ptr(), 0, 7, 0.5)
    assert [type(word) for word in words] == [np.uint64, np.uint64, np.uint64, np.int32, np.float32]
    assert len(gpu) == 1


def test_what_is_missing_is_told_with_the_way_out(gpu, monkeypatch):
    assert _launch.why_not((9, 0)) == ""
    for number, package in (((13, 5), "nvidia-cuda-nvrtc"), ((12, 8), "nvidia-cuda-nvrtc-cu12")):
        monkeypatch.setattr(_nvrtc, "version", lambda number=number: number)
        assert _launch.why_not((7, 0)) == (
            "NVIDIA's run-time compiler {}.{} does not know sm_70".format(*number)
            + f" (pip install -U {package})"
        )
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    _nvrtc._library.cache_clear()
    assert _launch.why_not((9, 0)) == "cuda-pathfinder is not installed (pip install 'qspec[cuda]')"
    monkeypatch.undo()

    def nowhere(name):
        raise pathfinder.DynamicLibNotFoundError(name)

    monkeypatch.setattr(_launch, "_cupy", lambda: None)
    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", nowhere)
    assert _launch.why_not((9, 0)) == (
        "NVIDIA's run-time compiler (nvidia-cuda-nvrtc) was not found (pip install 'qspec[cuda]')"
    )
    monkeypatch.undo()
    assert _nvrtc.why_not(90) == ""

    def broken():
        raise ImportError("a page of advice") from OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(_launch, "_cupy", broken)
    assert _launch.why_not((9, 0)) == (
        "cupy cannot be imported: libcuda.so.1: cannot open shared object file (pip install 'qspec[cuda]')"
    )


def test_int4_tensor_cores():
    why_not = LAUNCHERS["linear_w4a4"].why_not
    assert [sm for sm in (80, 86, 89, 90, 100, 120) if not why_not(divmod(sm, 10))] == [80, 86, 89]
    assert why_not((9, 0)) == (
        "needs int4 tensor cores, sm_80 to sm_89; the device is sm_90"
        " (Triton computes the same numbers on int8 units)"
    )


@pytest.mark.parametrize("arch", build_table_cuda.ARCHS)
def test_blocks_fit(arch):
    for variant in build_table_cuda.variants(arch):
        assert variant.kernel.shared_bytes <= _launch.shared_limit(arch), variant.name
        assert variant.kernel.threads <= 1024


def test_importing_needs_neither_cupy_nor_a_gpu():
    names = "".join(f"import qspec_kernels.backends.cuda.{name}\n" for name in LAUNCHERS)
    code = f"import sys\nsys.modules['cupy'] = sys.modules['cuda.pathfinder'] = None\n{names}"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})


def test_the_build_is_no_worse_than_the_table():
    """One architecture of build_table_cuda.py; its --check does all."""
    arch = 90
    chosen = [
        v
        for v in build_table_cuda.variants(arch)
        if v.name.endswith(("g128 m<=8", "g32 m<=32", " g8192", "fragments"))
    ]
    committed = build_table_cuda.read()[str(arch)]
    entries = {variant.name: build_table_cuda.compile_variant(variant, arch) for variant in chosen}
    assert not build_table_cuda.wrong(arch, entries, committed)
    assert len(entries) >= 6


def test_the_table_has_every_variant():
    table = build_table_cuda.read()
    for arch in build_table_cuda.ARCHS:
        assert set(table[str(arch)]) == {variant.name for variant in build_table_cuda.variants(arch)}


def test_a_worse_build_is_noticed():
    arch = 80
    variant = next(build_table_cuda.variants(arch))
    committed = build_table_cuda.read()[str(arch)]
    entry = committed[variant.name]
    assert not build_table_cuda.wrong(arch, {variant.name: entry}, committed)
    for worse in (
        {"stack": 8},
        {"registers": entry["registers"] * 2},
        {"opcodes": {"IMMA.16832.S8.S8": 4}},
        {"opcodes": {"LDGSTS": 4}},
        {"local_in_loops": 1},
    ):
        assert len(build_table_cuda.wrong(arch, {variant.name: entry | worse}, committed)) >= 1, worse


def test_the_cache_is_in_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _compile.cache_directory() == tmp_path / ".cache" / "qspec" / "cuda"
