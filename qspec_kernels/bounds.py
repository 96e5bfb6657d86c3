"""What bounds a kernel on this machine: reading memory by a plain loop, multiplying and adding in registers.

Both are kernels like any other, so that they are timed beside the others, in the same run and the same way.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from qspec_kernels.errors import UsageError

# as bounds.cpp numbers them
PEAKS = {"fp32": 0, "bf16": 1, "int8": 2}


def read_pass(data: Tensor) -> int:
    """Read a tensor once, front to back, on the threads that kernels use.

    Returns
    -------
    The sum of its 32-bit words modulo 2^32: every byte was read.

    Raises
    ------
    UsageError
        If the tensor is no whole number of such words in one piece on the CPU.
    KernelUnavailable
        Where no native CPU kernels are loaded.
    """
    if not data.is_contiguous() or data.device.type != "cpu" or data.nbytes % 4:
        raise UsageError(
            f"data has {data.nbytes} bytes with strides {data.stride()} on {data.device};"
            " expected a contiguous CPU tensor with a multiple of 4 bytes",
        )
    calls = _calls()
    checksum = torch.empty(1, dtype=torch.int32)
    calls.call("read_pass", checksum, data, data.nbytes, calls.num_threads(), at_once=True)
    return int(checksum) % (1 << 32)


def compute_pass(kind: str, iterations: int) -> int:
    """Multiply and add in registers, with the instructions that linears of this instruction set use.

    Parameters
    ----------
    kind
        "fp32"; "bf16" (products summed in float32); "int8" (bytes, summed in int32).
    iterations
        A million of them are some milliseconds.

    Returns
    -------
    The operations of all threads together; a multiplication and an addition are two.

    Raises
    ------
    UsageError
        If there is no such kind.
    KernelUnavailable
        Where no native CPU kernels are loaded.
    """
    if kind not in PEAKS:
        raise UsageError(f"kind is {kind!r}; expected one of {', '.join(PEAKS)}")
    calls = _calls()
    operations = torch.empty(1, dtype=torch.int64)
    calls.call("compute_pass", operations, PEAKS[kind], iterations, calls.num_threads(), at_once=True)
    return int(operations)


def _calls() -> ModuleType:
    importlib.import_module("qspec_kernels.backends.cpp.library").load()
    return importlib.import_module("qspec_kernels.backends.cpp.calls")
