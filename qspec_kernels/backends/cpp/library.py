"""Finds, checks and loads the library of native kernels that fits this CPU.

One library per instruction set is built with the package (`lib/qspec_<name>.so`), all from the same sources.
The best one that the CPU's flags allow is loaded on first use; the environment variable `QSPEC_CPU_ISA` names
another, or `torch` for none.
"""

import ctypes
import hashlib
import os
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from qspec_kernels.errors import KernelUnavailable, UsageError

ENVIRONMENT = "QSPEC_CPU_ISA"
REBUILD = "rebuild the kernels with `python -m pip install -e .` in the directory of pyproject.toml"

_AVX2 = ("avx2", "fma", "f16c")
_AVX512VNNI = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
_AVX512BF16 = (*_AVX512VNNI, "avx512_bf16")

REQUIRED_FLAGS: dict[str, tuple[str, ...]] = {
    "amx": (*_AVX512BF16, "amx_tile", "amx_int8", "amx_bf16"),
    "avx512bf16": _AVX512BF16,
    "avx512vnni": _AVX512VNNI,
    "avx2": _AVX2,
    "portable": (),
}
"""CPU flags, as /proc/cpuinfo spells them, that each library may use; the best library first.

The linears of amx multiply with tile registers, and add BF16 products in another order than avx512bf16.
"""

# what kernels return, as pool.hpp numbers it
_OUT_OF_MEMORY, _OUT_OF_RANGE = 1, 2


class SystemRefusal(KernelUnavailable):
    """The CPU has what a library needs, and the system keeps it from this process."""


@dataclass(frozen=True)
class Library:
    """A loaded library: the name of its instruction set, its file, and the handle to its kernels."""

    isa: str
    path: Path
    handle: ctypes.CDLL


def cpu_field(name: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A field of the first CPU that `cpuinfo` describes; empty where the system does not say."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The flags of the first CPU."""
    return frozenset(cpu_field("flags", cpuinfo).split())


def source_hash(directory: Path) -> str | None:
    """SHA-256 over the kernels' sources in `directory` and the flags they are compiled with, as the build
    computes it; None if there are none."""
    sources = [*directory.glob("*.cpp"), *directory.glob("*.hpp")]
    recipe = directory.parents[2] / "CMakeLists.txt"
    if not sources or not recipe.exists():
        return None
    files = [*sources, recipe]
    lines = sorted(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def open_library(isa: str, path: Path, sources: Path) -> Library:
    """Load the library at `path`; KernelUnavailable if it does not load or `sources` have changed since.

    SystemRefusal, which is one too, if the system does not grant the registers that its kernels use.
    """
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelUnavailable(f"the kernel library {path.name} does not load: {error}", REBUILD) from error
    if not hasattr(handle, "qspec_source_hash"):
        raise KernelUnavailable(f"{path} is no kernel library", REBUILD)
    handle.qspec_source_hash.restype = ctypes.c_char_p
    built = handle.qspec_source_hash().decode()
    if source_hash(sources) not in (None, built):
        raise KernelUnavailable(
            f"the kernel library {path.name} was built from other sources than those in {sources}", REBUILD
        )
    if refused := handle.qspec_request_tiles():
        raise SystemRefusal(
            f"the system refuses this process the tile registers of AMX: {os.strerror(refused)}",
            "Linux grants them since 5.16, unless a sandbox forbids arch_prctl or a thread's signal stack is"
            f" too small; {ENVIRONMENT}=avx512bf16 does without them",
        )
    return Library(isa, path, handle)


@lru_cache(maxsize=1)
def load() -> Library:
    """The library for this CPU, or the one that QSPEC_CPU_ISA names.

    Raises UsageError if that variable names no library, or one that was not built, that needs other CPU flags
    or that the system refuses, and KernelUnavailable if it is `torch`, if no library was built, or if the
    library is stale. One that the system refuses and nobody asked for is passed over with a warning.
    """
    directory = _directory()
    flags = cpu_flags()
    wanted = os.environ.get(ENVIRONMENT, "")
    if wanted == "torch":
        raise KernelUnavailable(f"{ENVIRONMENT}=torch asks for the torch path", f"unset {ENVIRONMENT}")
    if wanted:
        _check_wanted(wanted, flags)
        candidates = [wanted]
    else:
        candidates = [isa for isa, required in REQUIRED_FLAGS.items() if flags.issuperset(required)]
    for isa in candidates:
        path = _path(directory, isa)
        if not path.exists():
            continue
        try:
            return open_library(isa, path, directory)
        except SystemRefusal as refusal:
            if wanted:
                raise UsageError(f"{ENVIRONMENT}={wanted}: {refusal.message}", refusal.hint) from refusal
            warnings.warn(f"{refusal.message}; slower kernels serve instead", stacklevel=2)
    if wanted:
        raise UsageError(
            f"{ENVIRONMENT}={wanted} names a library that was not built",
            f"choose one of: {', '.join([*_runnable(directory, flags), 'torch'])}; or {REBUILD}",
        )
    raise KernelUnavailable(f"no kernel library was built for {' or '.join(candidates)}", REBUILD)


def available() -> tuple[bool, str]:
    """Whether `load` succeeds, and which library it gives or why it gives none. UsageError as `load`."""
    try:
        library = load()
    except KernelUnavailable as error:
        return False, str(error)
    return True, f"library {library.isa}"


def isa() -> str:
    """Name of the loaded instruction set; raises as `load`."""
    return load().isa


def reset() -> None:
    """Forget the choice, so that the next call looks at QSPEC_CPU_ISA and the files again."""
    load.cache_clear()
    function.cache_clear()


@cache
def function(name: str) -> Any:
    """The kernel `qspec_<name>` as a function of its arguments' words (see program.hpp); returns a status."""
    kernel = load().handle[f"qspec_recorded_{name}"]
    kernel.argtypes = [ctypes.c_void_p]
    kernel.restype = ctypes.c_int
    return kernel


def check(status: int) -> None:
    """Turn a kernel's status into an exception: the only ways a checked call can fail."""
    if status == _OUT_OF_MEMORY:
        raise MemoryError("a native kernel found no memory for its scratch space")
    if status == _OUT_OF_RANGE:
        raise UsageError("an id, row or position lies outside its table or cache; nothing was written")


def _directory() -> Path:
    return Path(str(resources.files("qspec_kernels.backends.cpp")))


def _runnable(directory: Path, flags: frozenset[str]) -> list[str]:
    """Names of the libraries that are there and that a CPU with these flags can run."""
    return [
        isa
        for isa, required in REQUIRED_FLAGS.items()
        if flags.issuperset(required) and _path(directory, isa).exists()
    ]


def _path(directory: Path, isa: str) -> Path:
    return directory / "lib" / f"qspec_{isa}.so"


def _check_wanted(wanted: str, flags: frozenset[str]) -> None:
    if wanted not in REQUIRED_FLAGS:
        known = ", ".join([*REQUIRED_FLAGS, "torch"])
        raise UsageError(f"{ENVIRONMENT}={wanted!r} names no instruction set", f"choose one of: {known}")
    missing = [flag for flag in REQUIRED_FLAGS[wanted] if flag not in flags]
    if missing:
        raise UsageError(
            f"{ENVIRONMENT}={wanted} needs CPU flags that this machine lacks: {', '.join(missing)}",
            f"unset {ENVIRONMENT} to let the best library be chosen",
        )
