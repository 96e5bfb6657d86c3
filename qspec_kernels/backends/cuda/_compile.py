"""CUDA sources to machine code, kept in the user's cache by the hash of all that decides it."""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import torch

from qspec_kernels.backends.cuda import _nvrtc
from qspec_kernels.errors import KernelUnavailable

# products and sums are contracted only where a kernel says so, and subnormals are numbers
_OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true")


@dataclass(frozen=True)
class Kernel:
    """A kernel with its constants filled in: one compilation per architecture.

    Parameters
    ----------
    name
        Of its source `<name>.cu`, and of the function in it.
    parts
        The files whose text stands before it, in order.
    constants
        Names and values that the source expects to be defined.
    threads
        Of a block.
    shared_bytes
        Of a block, all of it dynamic.
    """

    name: str
    parts: tuple[str, ...]
    constants: tuple[tuple[str, int], ...]
    threads: int
    shared_bytes: int

    def source(self) -> str:
        """The text that is compiled."""
        return "\n".join(map(_text, (*self.parts, f"{self.name}.cu")))


def cubin(kernel: Kernel, arch: str) -> Path:
    """The compiled kernel: from the cache, or compiled now.

    Processes that compile the same at the same time each write a file of their own and rename it, so that no
    one reads half a file.

    Parameters
    ----------
    arch
        The very architecture of the GPU, such as "sm_90": nothing is left to the driver's compiler.

    Raises
    ------
    KernelUnavailable
        If there is no compiler, or a CUDA graph is being captured and the kernel is not there yet.
    """
    source, how = kernel.source(), options(kernel, arch)
    decided_by = json.dumps([source, how, _nvrtc.version()])
    digest = hashlib.sha256(decided_by.encode()).hexdigest()[:32]
    path = cache_directory() / f"{kernel.name}-{arch}-{digest}.cubin"
    if not path.exists():
        refuse_capture(kernel)
        code = _nvrtc.compile(source, f"{kernel.name}.cu", how)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, delete=False) as file:
            file.write(code)
        Path(file.name).replace(path)
    return path


def options(kernel: Kernel, arch: str) -> list[str]:
    """What the compiler is told, the kernel's constants included."""
    constants = (f"-D{name}={value}" for name, value in kernel.constants)
    return [f"--gpu-architecture={arch}", *_OPTIONS, *constants]


def refuse_capture(kernel: Kernel) -> None:
    """Raise KernelUnavailable while the current stream is captured into a CUDA graph.

    Compiling and loading would end the capture, or be repeated by nothing that replays it.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise KernelUnavailable(
            f"{kernel.name} has to be compiled and loaded, but a CUDA graph is being captured",
            "Call qspec_kernels.warmup for the weights before capturing, or run the model once.",
        )


def cache_directory() -> Path:
    """Where compiled kernels are kept: qspec/cuda in $XDG_CACHE_HOME, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "qspec" / "cuda"


@cache
def _text(name: str) -> str:
    return resources.files("qspec_kernels.backends.cuda").joinpath(name).read_text()
