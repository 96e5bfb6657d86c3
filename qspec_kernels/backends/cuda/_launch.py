"""Launches compiled kernels through CuPy, on PyTorch's memory and PyTorch's current stream."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qspec_kernels.backends.cuda import _nvrtc
from qspec_kernels.backends.cuda._compile import Kernel, cubin, refuse_capture

# shared memory that a block may have, in bytes; other architectures are taken to have the least
_SHARED = {80: 166912, 87: 166912, 90: 232448, 100: 232448, 103: 232448}
_LEAST_SHARED = 101376


@cache
def arch(device: torch.device) -> int:
    """Compute capability of a device as one number: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def shared_limit(arch: int) -> int:
    """Bytes of shared memory that a block can have on an architecture."""
    return _SHARED.get(arch, _LEAST_SHARED)


def launch(kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
    """Run a kernel on the device of its first argument.

    Parameters
    ----------
    grid
        Blocks along x and y; nothing is launched if there are none.
    arguments
        In the kernel's order: tensors (contiguous, of what is written first), None for a null pointer, ints
        for 32-bit integers, floats for 32-bit floats.
    """
    if 0 in grid:
        return
    device = arguments[0].device
    with _on(device):
        function = _function(kernel, device.index, arch(device))
        stream = SimpleNamespace(ptr=torch.cuda.current_stream().cuda_stream)
        function(
            grid,
            (kernel.threads,),
            tuple(map(_word, arguments)),
            shared_mem=kernel.shared_bytes,
            stream=stream,
        )


def why_not(capability: tuple[int, int]) -> str:
    """What compiling and launching for a GPU of this capability lacks, with the way out; empty if nothing."""
    try:
        _cupy()
    except ImportError as error:
        # CuPy's own message is a page around the cause
        return f"cupy cannot be imported: {error.__cause__ or error} (pip install 'qspec[cuda]')"
    return _nvrtc.why_not(10 * capability[0] + capability[1])


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    # CuPy keeps a current device of its own
    with torch.cuda.device(device), _cupy().cuda.Device(device.index):
        yield


@cache
def _cupy() -> ModuleType:
    # imported on first use: importing qspec_kernels needs neither CuPy nor a GPU
    return importlib.import_module("cupy")


@cache
def _function(kernel: Kernel, device_index: int, arch: int) -> Any:
    refuse_capture(kernel)
    function = _cupy().RawModule(path=str(cubin(kernel, f"sm_{arch}"))).get_function(kernel.name)
    function.max_dynamic_shared_size_bytes = kernel.shared_bytes
    return function


def _word(argument: Any) -> Any:
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, Tensor):
        return np.uint64(argument.data_ptr())
    return np.float32(argument) if isinstance(argument, float) else np.int32(argument)
