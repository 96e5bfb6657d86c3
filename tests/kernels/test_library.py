"""The native library: which one is chosen, what it refuses, what it depends on, and its threads."""

import ctypes
import errno
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qspec_kernels import KernelUnavailable, UsageError, dispatch, linear
from qspec_kernels.backends.cpp import library
from qspec_kernels.backends.cpp.attention import attention
from qspec_kernels.backends.cpp.linear_bf16 import linear_bf16
from qspec_kernels.backends.cpp.linear_mxfp4a8 import linear_mxfp4a8
from qspec_kernels.formats import mxfp4, mxfp4_tiles16

DIRECTORY = Path(library.__file__).parent
BUILT = sorted((DIRECTORY / "lib").glob("qspec_*.so"))
# What the C library itself consists of; anything else would have to be installed beside the wheel.
SYSTEM = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2"}

FORK = """
import os, signal, torch
from qspec_kernels.backends.cpp.linear_bf16 import linear_bf16
torch.set_num_threads(2)
torch.manual_seed(0)
x, w = torch.randn(3, 512), torch.randn(1024, 512).bfloat16()
want = linear_bf16(x, w, None, None)
for _ in range(8):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        same = all(torch.equal(linear_bf16(x, w, None, None), want) for _ in range(20))
        os._exit(0 if same else 1)
    linear_bf16(x, w, None, None)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    yield
    monkeypatch.undo()
    dispatch.reset()


@pytest.fixture
def loaded(monkeypatch) -> library.Library:
    """The library that this CPU takes by itself."""
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    dispatch.reset()
    works, reason = library.available()
    if not works:
        pytest.skip(reason)
    return library.load()


@pytest.fixture
def threads():
    """Sets the number of threads, and restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("changed", ["qspec_kernels/backends/cpp/rmsnorm.cpp", "CMakeLists.txt"])
def test_stale_library_is_refused(loaded, tmp_path, changed):
    if library.source_hash(DIRECTORY) is None:
        pytest.skip("installed without sources: nothing to be stale against")
    copy = tmp_path / "qspec_kernels" / "backends" / "cpp"
    copy.mkdir(parents=True)
    for source in (*DIRECTORY.glob("*.cpp"), *DIRECTORY.glob("*.hpp")):
        shutil.copy(source, copy)
    shutil.copy(DIRECTORY.parents[2] / "CMakeLists.txt", tmp_path)
    assert library.open_library(loaded.isa, loaded.path, copy).isa == loaded.isa
    path = tmp_path / changed
    path.write_text(path.read_text() + "\n")
    with pytest.raises(KernelUnavailable, match=r"built from other sources[\s\S]*pip install -e \."):
        library.open_library(loaded.isa, loaded.path, copy)


def test_library_without_sources_is_accepted(loaded, tmp_path):
    assert library.source_hash(tmp_path) is None
    assert library.open_library(loaded.isa, loaded.path, tmp_path).path == loaded.path


def test_damaged_library_is_refused(tmp_path):
    broken = tmp_path / "qspec_portable.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(KernelUnavailable, match="does not load"):
        library.open_library("portable", broken, tmp_path)


def test_override_names_the_missing_flag(monkeypatch):
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset({"avx2", "fma"}))
    monkeypatch.setenv(library.ENVIRONMENT, "avx2")
    dispatch.reset()
    with pytest.raises(UsageError, match=r"QSPEC_CPU_ISA=avx2 needs CPU flags .* lacks: f16c"):
        library.load()


def test_unknown_override_lists_the_names(monkeypatch):
    monkeypatch.setenv(library.ENVIRONMENT, "sse9")
    dispatch.reset()
    with pytest.raises(UsageError, match=r"'sse9'[\s\S]*amx, avx512bf16, avx512vnni, avx2, portable, torch"):
        library.load()


def test_override_that_was_not_built_lists_what_was(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    for isa in ("avx512bf16", "avx2", "portable"):
        (tmp_path / "lib" / f"qspec_{isa}.so").touch()
    monkeypatch.setattr(library, "_directory", lambda: tmp_path)
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(library.REQUIRED_FLAGS["avx512vnni"]))
    monkeypatch.setenv(library.ENVIRONMENT, "avx512vnni")
    dispatch.reset()
    with pytest.raises(
        UsageError, match=r"QSPEC_CPU_ISA=avx512vnni .* not built\nchoose one of: avx2, port.*h;"
    ):
        dispatch.isa()


def test_torch_override_loads_nothing(monkeypatch):
    monkeypatch.setenv(library.ENVIRONMENT, "torch")
    dispatch.reset()
    assert library.available()[0] is False
    assert dispatch.isa() == "torch"


@pytest.mark.parametrize("isa", list(library.REQUIRED_FLAGS))
def test_best_library_for_the_flags_is_chosen(isa, monkeypatch):
    opened = []
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(library.REQUIRED_FLAGS[isa]))
    monkeypatch.setattr(library, "open_library", lambda name, path, sources: opened.append(name))
    monkeypatch.setattr(Path, "exists", lambda path: True)
    dispatch.reset()
    library.load()
    assert opened == [isa]


def refuse_tiles(monkeypatch) -> None:
    """The CPU has AMX and every library is built, but the system does not grant the tile registers."""

    def opened(path: str) -> SimpleNamespace:
        def qspec_source_hash() -> bytes:
            return b"any"

        refused = errno.EPERM if "amx" in path else 0
        return SimpleNamespace(qspec_source_hash=qspec_source_hash, qspec_request_tiles=lambda: refused)

    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(library.REQUIRED_FLAGS["amx"]))
    monkeypatch.setattr(library, "source_hash", lambda sources: None)
    monkeypatch.setattr(library.ctypes, "CDLL", opened)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    dispatch.reset()


def test_library_that_the_system_refuses_is_passed_over(monkeypatch):
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    refuse_tiles(monkeypatch)
    with pytest.warns(UserWarning, match="tile registers of AMX: Operation not permitted; slower kernels"):
        assert library.load().isa == "avx512bf16"


def test_library_that_the_system_refuses_is_not_replaced_when_asked_for(monkeypatch):
    monkeypatch.setenv(library.ENVIRONMENT, "amx")
    refuse_tiles(monkeypatch)
    with pytest.raises(UsageError, match=r"ISA=amx: the system refuses[\s\S]*QSPEC_CPU_ISA=avx512bf16"):
        library.load()


def test_flags_are_read_from_cpuinfo(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_tile\nbugs\t\t: none\n")
    assert library.cpu_flags(cpuinfo) == {"fpu", "avx2", "amx_tile"}
    assert library.cpu_flags(tmp_path / "missing") == frozenset()
    assert library.cpu_field("bugs", cpuinfo) == "none"
    assert library.cpu_field("model name", cpuinfo) == ""


@pytest.mark.parametrize("path", BUILT, ids=lambda path: path.stem)
def test_library_needs_the_c_library_alone(path):
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    listing = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in listing.splitlines() if "(NEEDED)" in line}
    assert needed <= SYSTEM


@pytest.mark.parametrize("path", BUILT, ids=lambda path: path.stem)
def test_every_launcher_finds_its_kernel(path):
    handle = ctypes.CDLL(str(path))
    launchers = [file.stem for file in DIRECTORY.glob("[a-z]*.py") if file.stem not in ("library", "calls")]
    assert len(launchers) > 10
    for name in launchers:
        assert hasattr(handle, f"qspec_{name}"), name
        assert hasattr(handle, f"qspec_recorded_{name}"), name


def test_kernels_work_in_a_forked_child(loaded):
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=200)


def test_result_is_the_same_for_every_number_of_threads(loaded, threads):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(9, 512, generator=generator)
    w = torch.randn(1000, 512, generator=generator)
    packed = mxfp4_tiles16.pack(*mxfp4.quantize(w))
    codes = torch.randint(-127, 128, (9, 512), dtype=torch.int8, generator=generator)
    scales = torch.rand(9, 1, generator=generator)
    cache = torch.randn(1, 4, 400, 64, generator=generator)
    rows, positions = torch.zeros(200, dtype=torch.int32), torch.arange(200, 400, dtype=torch.int32)
    q = torch.randn(200, 8, 64, generator=generator)

    def results(count: int) -> list[torch.Tensor]:
        threads(count)
        return [
            linear_bf16(x, w.bfloat16(), None, None),
            linear_mxfp4a8(codes, scales, packed.data, packed.scales, None, None, 1000, 512, 32),
            attention(q, cache, cache, rows, positions, 0.125, -1),
        ]

    alone = results(1)
    for count in (2, 3, 5):
        for one, many in zip(alone, results(count), strict=True):
            assert torch.equal(one, many)


def test_concurrent_callers_do_not_disturb_each_other(loaded, threads):
    threads(2)
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(2048, 256, generator=generator).bfloat16()
    inputs = [torch.randn(1 + i % 5, 256, generator=generator) for i in range(64)]
    want = [linear_bf16(x, w, None, None) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: linear_bf16(x, w, None, None), inputs))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_workers_compute_in_the_callers_float_mode(threads: None) -> None:
    """Flushing of denormals is a thread's own setting; a result must not depend on who took the task."""
    x, weight = torch.full((1, 64), 1e-20), torch.full((4096, 64), 1e-20)
    torch.set_num_threads(2)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU does not flush denormals")
    try:
        results = [linear(x, weight) for _ in range(50)]
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(result, results[0]) for result in results)
    assert not torch.equal(results[0], linear(x, weight))
