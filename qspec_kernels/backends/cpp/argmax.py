"""Launcher of argmax.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def argmax(x: Tensor) -> Tensor:
    """x float32 [M, N] -> int64 [M], -1 where a row has a NaN or no finite maximum."""
    m, n = x.shape
    ids = empty((m,), torch.int64)
    call("argmax", ids, x, m, n, num_threads())
    return ids
