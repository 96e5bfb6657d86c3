"""Which function serves an op on a device: the path is the registration.

A backend is a folder of `backends/`; it serves the ops it has files for: `backends/<backend>/<op>.py` with a
function `<op>`, and `<op>_prefill.py` where long prompts have a kernel of their own. A file that reads packed
weights names their byte order in a constant `READS`; one that not every GPU can run has a function
`why_not(capability)`, which gives the reason, or "" where it serves; `why_not(capability, sizes)` where that
depends on how large a call is. Which of a GPU's backends is asked first stands in `preferences`.
"""

import importlib
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from inspect import signature
from types import ModuleType
from typing import Any

import torch

from qspec_kernels import preferences
from qspec_kernels.errors import KernelUnavailable
from qspec_kernels.formats import PackedWeight, canonical, convert

NO_KERNEL = "has no such kernel"
# what a linear is computed for: tokens that are decoded, drafted or verified, or a prompt
PHASES = ("decode", "prefill")

_BACKENDS = {"cpu": ("cpp", "torch"), "cuda": preferences.DEFAULT}
# what the GPU backends are compiled and launched with and where it comes from, and the first of NVIDIA's
# architectures they are written for
_GPU_LIBRARIES = {"cuda": "cupy", "triton": "triton"}
_WAYS_OUT = {"cuda": "pip install 'qspec[cuda]'", "triton": "PyTorch's builds for GPUs bring it along"}
_CPUS = "CPUs have kernels of their own"
_LEAST_CAPABILITY = (8, 0)
# modules of theirs whose why_not(capability) says what cannot be compiled or launched
_TOOLS = {"cuda": "_launch", "triton": "_compiler"}
_state = threading.local()


@cache
def find(
    op: str,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    format: str | None = None,
    phase: str = "decode",
    sizes: tuple[int, ...] | None = None,
) -> Callable[..., Any]:
    """The function that serves `op`: the first backend of the device that can.

    In the phase "prefill" that is the first with `<op>_prefill`, and where none has it, `op` as ever.

    Parameters
    ----------
    op
        Name of the backend file, such as "linear_w4a8".
    dtype
        What is computed in; float64 is served by the torch backend alone.
    format
        Byte order of the packed weight; backends that read another are passed over.
    phase
        "decode" or "prefill".
    sizes
        Of the call, where a backend's limits or a row of `preferences` depend on them; the op says which they
        are, and the number of rows is none.

    Raises
    ------
    KernelUnavailable
        If no backend serves it.
    UsageError
        If QSPEC_CPU_ISA asks for a library that does not exist or needs flags the CPU lacks.
    """
    device = torch.device(device)
    choice = choose(op, device, dtype, format, phase, sizes)
    if choice.backend is not None:
        if format is not None and choice.refusals and choice.backend == "torch":
            _tell_of_conversion(op, device, dtype, format)
        return getattr(_module(choice.backend, choice.name), choice.name)
    raise KernelUnavailable(
        f"no backend on {device} serves {op} for {format or dtype}: " + "; ".join(choice.refusals),
        "Convert the weight with qspec_kernels.to_device_layout, or to its canonical order with"
        " qspec_kernels.formats.convert." if format else "qspec_kernels.explain says what serves an op.",
    )  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The file that serves an op, of which backend (None: none does), why not those asked before, and the
    compute capability of the GPU if it is one of NVIDIA's."""

    name: str
    backend: str | None
    refusals: tuple[str, ...]
    capability: tuple[int, int] | None


def choose(
    op: str,
    device: torch.device,
    dtype: torch.dtype | None = None,
    format: str | None = None,
    phase: str = "decode",
    sizes: tuple[int, ...] | None = None,
) -> Choice:
    """What `find` takes, of which these are the parameters, and `explain` tells of."""
    refusals: list[str] = []
    capability = _capability(device) if device.type == "cuda" else None
    for name in (f"{op}_prefill", op) if phase == "prefill" else (op,):
        refusals = []
        for backend in _backends(device, name, sizes):
            reason = refusal(backend, name, device, dtype, format, sizes)
            if reason is None:
                return Choice(name, backend, tuple(refusals), capability)
            refusals.append(f"{backend}: {reason}")
    return Choice(op, None, tuple(refusals), capability)


def refusal(
    backend: str, op: str, device: torch.device, dtype: torch.dtype | None, format: str | None,
    sizes: tuple[int, ...] | None = None,
) -> str | None:  # fmt: skip
    """Why a backend does not serve an op; None where it does."""
    if backend == "cpp":
        if dtype == torch.float64:
            return "computes in float32 (plain PyTorch in float64)"
        if reason := _cpp_refusal():
            return reason.splitlines()[0]
    if not _has(backend, op):
        return NO_KERNEL
    if backend in _GPU_LIBRARIES and (reason := _gpu_refusal(backend, op, device, dtype, sizes)):
        return reason
    reads = getattr(_module(backend, op), "READS", None)
    if format is not None and reads != format:
        return f"reads {reads}, not {format}"
    return None


def isa() -> str:
    """Name of the library that CPU kernels come from, or "torch" where there is none.

    Raises
    ------
    UsageError
        If QSPEC_CPU_ISA asks for a library that does not exist or needs flags the CPU lacks.
    """
    return "torch" if _cpp_refusal() else _cpp_library().isa()


def cpu_field(name: str) -> str:
    """A field of the first CPU, such as "flags", as /proc/cpuinfo has it; empty where there is none."""
    return _cpp_library().cpu_field(name)


def to_device_layout(packed: PackedWeight, device: torch.device | str | None = None) -> PackedWeight:
    """The same weight on `device` (its own by default), in the byte order that the device's kernels read."""
    packed = packed if device is None else packed.to(device)
    kind = canonical(packed.format)
    op = "linear_w4a16" if kind == "int4" else f"linear_{kind}a16"
    for backend in _backends(packed.device, op):
        if refusal(backend, op, packed.device, None, None) is None:
            return convert(packed, _module(backend, op).READS)
    raise KernelUnavailable(
        f"no backend on {packed.device} serves {op}",
        "Keep the weight on a device that `explain` names a path for.",
    )


def compiles(device: torch.device) -> bool:
    """Whether a device's kernels are compiled when they are first called."""
    return any(backend in _GPU_LIBRARIES for backend in _BACKENDS.get(device.type, ()))


def lacking(backend: str, capability: tuple[int, int]) -> str:
    """What a backend lacks to compile and launch for such a GPU, with the way out; empty where nothing."""
    if backend not in _GPU_LIBRARIES:
        return ""
    return _missing(backend) or _tools_refusal(backend, capability)


def recording() -> bool:
    """Whether this thread is recording a program (see `program`)."""
    return getattr(_state, "recording", False)


@contextmanager
def recorded() -> Iterator[None]:
    """Mark this thread as recording a program."""
    before = recording()
    _state.recording = True
    try:
        yield
    finally:
        _state.recording = before


def reset() -> None:
    """Forget every choice: the next call looks at QSPEC_CPU_ISA and the libraries again."""
    _cpp_library().reset()
    for cached in (find, _cpp_refusal, _capability, _tools_refusal):
        cached.cache_clear()


def _backends(device: torch.device, op: str, sizes: tuple[int, ...] | None = None) -> tuple[str, ...]:
    """Backends in the order in which they are asked for an op."""
    if device.type == "cuda":
        return preferences.backends(op, _capability(device), sizes)
    return _BACKENDS.get(device.type, ("torch",))


def _gpu_refusal(
    backend: str, op: str, device: torch.device, dtype: torch.dtype | None, sizes: tuple[int, ...] | None
) -> str:
    """Why a GPU backend does not run a kernel that it has; empty where it does."""
    if dtype == torch.float64:
        return "computes in float32 (plain PyTorch in float64)"
    if _amd() and backend == "cuda":
        return "is for NVIDIA's GPUs, and this PyTorch is built for AMD's (Triton serves both)"
    if reason := _missing(backend):
        return reason
    capability = None if _amd() else _capability(device)
    if capability is None and not (_amd() and torch.cuda.is_available()):
        return f"no {'AMD' if _amd() else 'NVIDIA'} device is at hand ({_CPUS})"
    if capability is not None and capability < _LEAST_CAPABILITY:
        needed = _sm(_LEAST_CAPABILITY)
        return f"needs {needed} or later; the device is {_sm(capability)} (plain PyTorch serves it)"
    # first, for with an old library the op's own file cannot be imported
    reason = _tools_refusal(backend, capability)
    why_not = None if reason or capability is None else getattr(_module(backend, op), "why_not", None)
    if why_not is None:
        return reason
    return why_not(capability, sizes) if len(signature(why_not).parameters) > 1 else why_not(capability)


def _missing(backend: str) -> str:
    """That the library of a GPU backend is not installed, with the way out; empty where it is."""
    library = _GPU_LIBRARIES[backend]
    return "" if find_spec(library) else f"{library} is not installed ({_WAYS_OUT[backend]})"


def _amd() -> bool:
    """Whether what PyTorch calls "cuda" are AMD's GPUs, whose capabilities are numbered otherwise."""
    return torch.version.hip is not None


@cache
def _capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of an NVIDIA GPU; None where there is none."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


@cache
def _tools_refusal(backend: str, capability: tuple[int, int] | None) -> str:
    """What compiling for such a GPU (None: one of AMD's) or launching lacks, with the way out; else empty."""
    tools = importlib.import_module(f"qspec_kernels.backends.{backend}.{_TOOLS[backend]}")
    return tools.why_not(capability)


def _sm(capability: tuple[int, int]) -> str:
    return "sm_{}{}".format(*capability)


def _tell_of_conversion(op: str, device: torch.device, dtype: torch.dtype | None, format: str) -> None:
    """Say once that a faster kernel is passed over only because of the byte order of the weight."""
    if any(refusal(backend, op, device, dtype, None) is None for backend in _backends(device, op)[:-1]):
        warnings.warn(
            f"{op} runs on the plain torch path because the weight is packed as {format!r};"
            " qspec_kernels.to_device_layout converts it to the order this device's kernels read",
            stacklevel=2,
        )


@cache
def _cpp_refusal() -> str:
    """Why there are no native CPU kernels; empty where there are. Said once unless it was asked for."""
    works, reason = _cpp_library().available()
    if works:
        return ""
    if not reason.startswith("QSPEC_CPU_ISA"):
        warnings.warn(f"CPU kernels run on the plain torch path: {reason}", stacklevel=2)
    return reason


def _cpp_library() -> ModuleType:
    # imported on first use: importing qspec_kernels must not look at the machine
    return importlib.import_module("qspec_kernels.backends.cpp.library")


def _has(backend: str, op: str) -> bool:
    return find_spec(f"qspec_kernels.backends.{backend}.{op}") is not None


def _module(backend: str, op: str) -> ModuleType:
    return importlib.import_module(f"qspec_kernels.backends.{backend}.{op}")
