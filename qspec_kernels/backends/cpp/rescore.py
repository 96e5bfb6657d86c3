"""Launcher of rescore.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, num_threads


def rescore(logits: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> None:
    """logits float32 [M, N] in place, x [M, K] float32 or bfloat16, weight bfloat16 [N, K], bias [N]."""
    (m, k), n = x.shape, weight.shape[0]
    call(
        "rescore",
        logits,
        x,
        x.dtype == torch.bfloat16,
        weight,
        None if bias is None else bias.float(),
        count,
        m,
        n,
        k,
        num_threads(),
    )
