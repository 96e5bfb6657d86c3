"""Launcher of silu_mul_quantize_act.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def silu_mul_quantize_act(x: Tensor, bits: int, group_size: int, clip: float) -> tuple[Tensor, Tensor]:
    """x [M, 2 F], gate beside up -> codes int8 [M, F], scales float32 [M, G]."""
    m, width = x.shape[0], x.shape[1] // 2
    codes = empty((m, width), torch.int8)
    scales = empty((m, -(-width // group_size)))
    call(
        "silu_mul_quantize_act",
        codes,
        scales,
        x,
        x.dtype == torch.bfloat16,
        m,
        width,
        group_size,
        float(2 ** (bits - 1) - 1),
        float(clip),
        num_threads(),
    )
    return codes, scales
