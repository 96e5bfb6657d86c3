"""Launcher of rmsnorm_quantize_act.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def rmsnorm_quantize_act(
    x: Tensor, weight: Tensor, eps: float, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, W], weight [W] -> codes int8 [M, W], scales float32 [M, G]."""
    m, width = x.shape
    codes = empty((m, width), torch.int8)
    scales = empty((m, -(-width // group_size)))
    call(
        "rmsnorm_quantize_act",
        codes,
        scales,
        x,
        x.dtype == torch.bfloat16,
        weight.float(),
        float(eps),
        m,
        width,
        group_size,
        float(2 ** (bits - 1) - 1),
        float(clip),
        num_threads(),
    )
    return codes, scales
