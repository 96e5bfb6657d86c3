"""Which function serves an op on a device: the path is the registration.

A backend is a folder of `backends/`; it serves the ops it has files for: `backends/<backend>/<op>.py` with a
function `<op>`, and `<op>_prefill.py` where long prompts have a kernel of their own. A file that reads packed
weights names their byte order in a constant `READS`; one that not every GPU can run has a function
`why_not(capability)`, which gives the reason, or "" where it serves; of ops that say how large a call is,
`why_not(capability, sizes)`.
"""

import contextlib
import importlib
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from qspec_kernels.errors import KernelUnavailable
from qspec_kernels.formats import PackedWeight, canonical, convert

_BACKENDS = {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}
# what the GPU backends are compiled and launched with and where it comes from, and the first of NVIDIA's
# architectures they are written for
_GPU_LIBRARIES = {"cuda": "cupy", "triton": "triton"}
_WAYS_OUT = {"cuda": "pip install 'qspec[cuda]'", "triton": "PyTorch's builds for GPUs bring it along"}
_LEAST_CAPABILITY = (8, 0)
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
        Of the call, where a backend's limits depend on them; the op's files say which they are.

    Raises
    ------
    KernelUnavailable
        If no backend serves it.
    UsageError
        If QSPEC_CPU_ISA asks for a library that does not exist or needs flags the CPU lacks.
    """
    if phase == "prefill":
        own = f"{op}_prefill"
        for backend in _backends(device):
            if _refusal(backend, own, torch.device(device), dtype, format) is None:
                return getattr(_module(backend, own), own)
        return find(op, device, dtype, format)
    refusals = []
    for backend in _backends(device):
        refusal = _refusal(backend, op, torch.device(device), dtype, format, sizes)
        if refusal is None:
            if format is not None and refusals and backend == "torch":
                _tell_of_conversion(op, torch.device(device), dtype, format)
            return getattr(_module(backend, op), op)
        refusals.append(f"{backend}: {refusal}")
    raise KernelUnavailable(
        f"no backend on {device} serves {op} for {format or dtype}: " + "; ".join(refusals),
        "Convert the weight with qspec_kernels.to_device_layout, or to its canonical order with"
        " qspec_kernels.formats.convert." if format else "qspec_kernels.explain says what serves an op.",
    )  # fmt: skip


def explain(
    op: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sizes: tuple[int, ...] | None = None,
) -> str:
    """One line: the backend that serves an op on a device, and why the ones before it do not.

    `isa()` and this are what `qspec doctor` prints. `sizes` are those of a call that may be too large for a
    backend: for hadamard_quantize_act the width of a row and the order of the base matrix.
    """
    refusals = []
    for backend in _backends(device):
        refusal = _refusal(backend, op, torch.device(device), dtype, None, sizes)
        if refusal is None:
            chosen = f"{op} on {device}: {backend}{_machine(backend, torch.device(device))}"
            return chosen + "".join(f"; not {reason}" for reason in refusals)
        refusals.append(f"{backend}: {refusal}")
    return f"{op} on {device}: none; " + "; ".join(refusals)


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
    for backend in _backends(packed.device):
        if _refusal(backend, op, packed.device, None, None) is None:
            return convert(packed, _module(backend, op).READS)
    raise KernelUnavailable(
        f"no backend on {packed.device} serves {op}",
        "Keep the weight on a device that `explain` names a path for.",
    )


def compiles(device: torch.device) -> bool:
    """Whether a device's kernels are compiled when they are first called."""
    return any(backend in _GPU_LIBRARIES for backend in _backends(device))


def num_threads() -> int:
    """Threads that a native kernel may use: PyTorch's number, unless within `exclusive_threads`."""
    return _cpp_calls().num_threads()


@contextmanager
def exclusive_threads() -> Iterator[None]:
    """Inside, native kernels keep the threads they may use and PyTorch's own ops run on one.

    After each parallel op of PyTorch its workers spin for milliseconds on cores that kernels want, which
    triples the cost of sampling. A loop that leaves the heavy work to kernels is better off without them.
    Holds for the calling thread; where there are no native kernels nothing changes.
    """
    with contextlib.nullcontext() if isa() == "torch" else _cpp_calls().exclusive_threads():
        yield


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
    for cached in (find, _cpp_refusal, _capability, _cuda_refusal):
        cached.cache_clear()


def _backends(device: torch.device | str) -> tuple[str, ...]:
    return _BACKENDS.get(torch.device(device).type, ("torch",))


def _refusal(
    backend: str, op: str, device: torch.device, dtype: torch.dtype | None, format: str | None,
    sizes: tuple[int, ...] | None = None,
) -> str | None:  # fmt: skip
    """Why a backend does not serve an op; None where it does."""
    if backend == "cpp":
        if dtype == torch.float64:
            return "computes in float32"
        if reason := _cpp_refusal():
            return reason.splitlines()[0]
    if not _has(backend, op):
        return "has no such kernel"
    if backend in _GPU_LIBRARIES and (reason := _gpu_refusal(backend, op, device, dtype, sizes)):
        return reason
    reads = getattr(_module(backend, op), "READS", None)
    if format is not None and reads != format:
        return f"reads {reads}, not {format}"
    return None


def _gpu_refusal(
    backend: str, op: str, device: torch.device, dtype: torch.dtype | None, sizes: tuple[int, ...] | None
) -> str:
    """Why a GPU backend does not run a kernel that it has; empty where it does."""
    if dtype == torch.float64:
        return "computes in float32"
    if _amd() and backend == "cuda":
        return "is for NVIDIA's GPUs, and this PyTorch is built for AMD's"
    if find_spec(_GPU_LIBRARIES[backend]) is None:
        return f"{_GPU_LIBRARIES[backend]} is not installed ({_WAYS_OUT[backend]})"
    if _amd():
        return "" if torch.cuda.is_available() else "no AMD device is at hand"
    capability = _capability(device)
    if capability is None:
        return "no NVIDIA device is at hand"
    if capability < _LEAST_CAPABILITY:
        return f"needs {_sm(_LEAST_CAPABILITY)} or later; the device is {_sm(capability)}"
    why_not = getattr(_module(backend, op), "why_not", None)
    limits = (capability,) if sizes is None else (capability, sizes)
    reason = why_not(*limits) if why_not else ""
    return reason or (_cuda_refusal(capability) if backend == "cuda" else "")


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
def _cuda_refusal(capability: tuple[int, int]) -> str:
    """What compiling and launching for such a GPU lacks, with the way out; empty where nothing is lacking."""
    return importlib.import_module("qspec_kernels.backends.cuda._launch").why_not(capability)


def _machine(backend: str, device: torch.device) -> str:
    """What a backend's kernels have been compiled for, as `explain` shows it."""
    if backend == "cpp":
        return f" ({isa()})"
    capability = _capability(device) if backend in _GPU_LIBRARIES else None
    return f" ({_sm(capability)})" if capability else ""


def _sm(capability: tuple[int, int]) -> str:
    return "sm_{}{}".format(*capability)


def _tell_of_conversion(op: str, device: torch.device, dtype: torch.dtype | None, format: str) -> None:
    """Say once that a faster kernel is passed over only because of the byte order of the weight."""
    if any(_refusal(backend, op, device, dtype, None) is None for backend in _backends(device)[:-1]):
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


def _cpp_calls() -> ModuleType:
    return importlib.import_module("qspec_kernels.backends.cpp.calls")


def _has(backend: str, op: str) -> bool:
    return find_spec(f"qspec_kernels.backends.{backend}.{op}") is not None


def _module(backend: str, op: str) -> ModuleType:
    return importlib.import_module(f"qspec_kernels.backends.{backend}.{op}")
