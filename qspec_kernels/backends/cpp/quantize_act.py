"""Launcher of quantize_act.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def quantize_act(x: Tensor, bits: int, group_size: int, clip: float) -> tuple[Tensor, Tensor]:
    """x [M, K] float32 or bfloat16 -> codes int8 [M, K], scales float32 [M, ceil(K / group_size)]."""
    m, k = x.shape
    codes = torch.empty(m, k, dtype=torch.int8)
    scales = torch.empty(m, -(-k // group_size))
    kernel = library.function("quantize_act", "pppllllffl")
    library.check(
        kernel(
            codes.data_ptr(),
            scales.data_ptr(),
            x.data_ptr(),
            x.dtype == torch.bfloat16,
            m,
            k,
            group_size,
            2 ** (bits - 1) - 1,
            clip,
            torch.get_num_threads(),
        )
    )
    return codes, scales
