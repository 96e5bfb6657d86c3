"""Launcher of quantize_act.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def quantize_act(x: Tensor, bits: int, group_size: int, clip: float) -> tuple[Tensor, Tensor]:
    """x [M, K] float32 or bfloat16 -> codes int8 [M, K], scales float32 [M, G]."""
    m, k = x.shape
    codes = empty((m, k), torch.int8)
    scales = empty((m, -(-k // group_size)))
    call(
        "quantize_act",
        codes,
        scales,
        x,
        x.dtype == torch.bfloat16,
        m,
        k,
        group_size,
        float(2 ** (bits - 1) - 1),
        float(clip),
        num_threads(),
    )
    return codes, scales
