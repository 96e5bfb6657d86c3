"""Launcher of hadamard_quantize_act.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def hadamard_quantize_act(
    x: Tensor, base: Tensor, block: int, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, K], base int8 [m, m] with block = m * 2^p -> codes int8 [M, K], scales float32 [M, G]."""
    m, k = x.shape
    codes = empty((m, k), torch.int8)
    scales = empty((m, -(-k // group_size)))
    call(
        "hadamard_quantize_act",
        codes,
        scales,
        x,
        x.dtype == torch.bfloat16,
        base,
        base.shape[0],
        m,
        k,
        block,
        group_size,
        float(2 ** (bits - 1) - 1),
        float(clip),
        num_threads(),
    )
    return codes, scales
