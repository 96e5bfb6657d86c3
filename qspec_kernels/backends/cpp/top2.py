"""Launcher of top2.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def top2(x: Tensor) -> tuple[Tensor, Tensor]:
    """x float32 [M, N] -> int64 [M], float32 [M, 2]; -1 and NaN where a row has no finite maximum."""
    m, n = x.shape
    ids, values = empty((m,), torch.int64), empty((m, 2))
    call("top2", ids, values, x, m, n, num_threads())
    return ids, values
