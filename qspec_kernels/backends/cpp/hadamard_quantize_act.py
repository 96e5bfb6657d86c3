"""Launcher of hadamard_quantize_act.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def hadamard_quantize_act(
    x: Tensor, base: Tensor, block: int, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, K], base int8 [m, m] with block = m * 2^p -> codes int8 [M, K], scales float32 [M, G]."""
    m, k = x.shape
    codes = torch.empty(m, k, dtype=torch.int8)
    scales = torch.empty(m, -(-k // group_size))
    kernel = library.function("hadamard_quantize_act", "ppplplllllffl")
    library.check(
        kernel(
            codes.data_ptr(),
            scales.data_ptr(),
            x.data_ptr(),
            x.dtype == torch.bfloat16,
            base.data_ptr(),
            base.shape[0],
            m,
            k,
            block,
            group_size,
            2 ** (bits - 1) - 1,
            clip,
            torch.get_num_threads(),
        )
    )
    return codes, scales
