"""NVIDIA's run-time compiler, called through its C interface.

Nothing but the compiler's library is needed: PyTorch's CUDA builds and CuPy's wheels bring it along.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from qspec_kernels.errors import KernelUnavailable, QSpecError


def version() -> tuple[int, int]:
    """Version of the compiler's library.

    Raises
    ------
    KernelUnavailable
        If there is no such library on this machine.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def why_not(arch: int) -> str:
    """Why nothing can be compiled for an architecture (90: sm_90), with the way out; empty where it can."""
    try:
        known = _architectures()
    except KernelUnavailable as error:
        return f"{error.message} ({error.hint})"
    if arch in known:
        return ""
    major, minor = version()
    # its packages were named after CUDA's major version until the 13th
    package = "nvidia-cuda-nvrtc" if major > 12 else f"nvidia-cuda-nvrtc-cu{major}"
    return f"NVIDIA's run-time compiler {major}.{minor} does not know sm_{arch} (pip install -U {package})"


def compile(source: str, name: str, options: Sequence[str]) -> bytes:
    """Machine code (a cubin) of a source.

    Parameters
    ----------
    name
        What error messages call the source.
    options
        The compiler's, the real architecture ("--gpu-architecture=sm_90") among them.

    Raises
    ------
    KernelUnavailable
        If there is no compiler on this machine.
    QSpecError
        If the source does not compile; with the compiler's messages.
    """
    program = ctypes.c_void_p()
    _call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    try:
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = _library().nvrtcCompileProgram(program, len(options), words)
        if status:
            log = _read(program, "nvrtcGetProgramLog").decode(errors="replace")
            raise QSpecError(f"{name} does not compile with {' '.join(options)}:\n{log}")
        return _read(program, "nvrtcGetCUBIN")
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _call(f"{what}Size", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _call(what, program, text)
    return text.raw.rstrip(b"\0") if what.endswith("Log") else text.raw


def _call(function: str, *arguments: Any) -> None:
    if status := getattr(_library(), function)(*arguments):
        raise QSpecError(f"{function} of NVIDIA's run-time compiler failed with status {status}")


def _architectures() -> list[int]:
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", numbers)
    return list(numbers)


@cache
def _library() -> ctypes.CDLL:
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ImportError as error:
        raise KernelUnavailable("cuda-pathfinder is not installed", "pip install 'qspec[cuda]'") from error
    try:
        found = load_nvidia_dynamic_lib("nvrtc")
    except DynamicLibNotFoundError as error:
        raise KernelUnavailable(
            "NVIDIA's run-time compiler (nvidia-cuda-nvrtc) was not found", "pip install 'qspec[cuda]'"
        ) from error
    path = Path(str(found.abs_path))
    library = ctypes.CDLL(str(path))
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    # opened by its bare name when something is compiled, which finds it wherever it lies if it is loaded
    builtins = path.with_name(f"libnvrtc-builtins.so.{major.value}.{minor.value}")
    if builtins.exists():
        ctypes.CDLL(str(builtins))
    return library
