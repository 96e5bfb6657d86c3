"""Launcher of embedding.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def embedding(table: Tensor, ids: Tensor, rounded: bool, dtype: torch.dtype) -> Tensor:
    """table [V, W] float32 or bfloat16, ids int64 [T] -> float32 [T, W], through bfloat16 if `rounded`."""
    tokens, (entries, width) = ids.shape[0], table.shape
    out = empty((tokens, width), dtype)
    call(
        "embedding",
        out,
        table,
        table.dtype == torch.bfloat16,
        ids,
        rounded,
        tokens,
        entries,
        width,
        num_threads(),
    )
    return out
