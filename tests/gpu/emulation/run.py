"""Builds CUDA kernels for the CPU and launches them there, in place of backends/cuda/_launch.py."""

import ctypes
import hashlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qspec_kernels.backends.cuda._compile import Kernel

HERE = Path(__file__).parent
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-fno-gnu-unique", "-fPIC", "-w"]

ENTRY = """
extern "C" const char* run(const emulation::Launch* how, void** arguments, int count) {{
    return emulation::launch({name}, *how, arguments, count);
}}
"""


class EmulationError(Exception):
    """A kernel did what a GPU would not forgive."""


class BuildError(Exception):
    """There is no kernel: an edit does not fit the source, or what it makes is no C++."""


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("memory", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("writable", ctypes.c_bool),
    )


class _Launch(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int) for name in ("grid_x", "grid_y", "threads", "shared_bytes", "late", "backwards")
    )


def _compile(*arguments: str, text: str = "") -> None:
    done = subprocess.run(
        ["g++", *FLAGS, *arguments], input=text, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise BuildError(done.stderr)


@dataclass
class Emulator:
    """Runs kernels on the CPU; `launch` and `arch` stand in for those of backends/cuda/_launch.py.

    Parameters
    ----------
    directory
        Where libraries are built; one for each different text.
    edits
        (old, new) pieces of source: what makes a mutant. Each has to occur in the text exactly once.
    late
        Whether asynchronous copies land at the wait for them, or at once.
    backwards
        Whether the last warp of a block goes first.
    capability
        What `arch` answers.
    """

    directory: Path
    edits: Sequence[tuple[str, str]] = ()
    late: bool = True
    backwards: bool = False
    capability: int = 80

    def arch(self, device: torch.device) -> int:
        """The architecture that kernels are launched for."""
        return self.capability

    def text(self, kernel: Kernel) -> str:
        """The kernel's source, mutated, over the emulated instructions."""
        if kernel.parts[0] != "ptx.cuh":
            raise BuildError(f"{kernel.name} begins with {kernel.parts[0]} instead of ptx.cuh")
        source = replace(kernel, parts=kernel.parts[1:]).source()
        for old, new in self.edits:
            if source.count(old) != 1:
                raise BuildError(f"{old!r} occurs {source.count(old)} times")
            source = source.replace(old, new)
        constants = "".join(f"#define {name} {value}\n" for name, value in kernel.constants)
        return f'#include "ptx.hpp"\n{constants}{source}{ENTRY.format(name=kernel.name)}'

    def library(self, kernel: Kernel) -> ctypes.CDLL:
        """The kernel as a library of this machine; libraries live as long as their directory.

        Raises
        ------
        BuildError
            If an edit does not fit, or the compiler refuses the text.
        """
        text = self.text(kernel)
        path = self.directory / f"{kernel.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
        if not path.exists():
            header = self.directory / "ptx.hpp"
            if not header.exists():
                shutil.copy(HERE / header.name, header)
                _compile("-x", "c++-header", str(header), "-o", f"{header}.gch")
            _compile("-shared", f"-I{self.directory}", "-x", "c++", "-", "-o", str(path), text=text)
        library = ctypes.CDLL(str(path))
        library.run.restype = ctypes.c_char_p
        return library

    def launch(self, kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
        """Run a kernel over CPU tensors; what it is to fill is full of NaN before.

        Raises
        ------
        BuildError
            If there is no such kernel: see `library`.
        EmulationError
            If the kernel leaves its buffers, misuses an instruction or never ends.
        """
        if 0 in grid:
            return
        library = self.library(kernel)
        parameters = re.search(rf"KERNEL\(.*?\)\s*{kernel.name}\((.*?)\)", kernel.source(), re.S)
        if not parameters:
            raise BuildError(f"no parameters of {kernel.name} in its source")
        written = ["const" not in parameter for parameter in parameters[1].split(",")]
        buffers, words = [], []
        for i, argument in enumerate(arguments):
            if isinstance(argument, Tensor):
                assert argument.is_contiguous()
                assert argument.device.type == "cpu"
                if written[i]:
                    argument.view(torch.uint8).fill_(255)
                # an address that leads nowhere, as aligned as the tensor is
                address = ((i + 1) << 40) + argument.data_ptr() % 256
                buffers.append(_Buffer(address, argument.data_ptr(), argument.nbytes, written[i]))
                words.append(ctypes.c_uint64(address))
            elif argument is None:
                words.append(ctypes.c_uint64(0))
            else:
                words.append(
                    ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)
                )
        library.set_buffers((_Buffer * len(buffers))(*buffers), len(buffers))
        pointers = (ctypes.c_void_p * len(words))(*map(ctypes.addressof, words))
        how = _Launch(*grid, kernel.threads, kernel.shared_bytes, self.late, self.backwards)
        error = library.run(ctypes.byref(how), pointers, len(words))
        if error:
            raise EmulationError(error.decode())
