"""Launcher of silu_mul_hadamard_quantize_act.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def silu_mul_hadamard_quantize_act(
    x: Tensor, base: Tensor, diagonal: Tensor | None, block: int, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, 2 F], gate beside up, base int8 [m, m] with block = m * 2^p, diagonal float32 [F] or None.

    Returns codes int8 [M, F] and scales float32 [M, G].
    """
    m, width = x.shape[0], x.shape[1] // 2
    codes = empty((m, width), torch.int8)
    scales = empty((m, -(-width // group_size)))
    call(
        "silu_mul_hadamard_quantize_act",
        codes,
        scales,
        x,
        x.dtype == torch.bfloat16,
        base,
        base.shape[0],
        diagonal,
        m,
        width,
        block,
        group_size,
        float(2 ** (bits - 1) - 1),
        float(clip),
        num_threads(),
    )
    return codes, scales
