"""Launcher of linear_bf16.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def linear_bf16(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [M, K] float32 or bfloat16, weight [N, K] bfloat16, bias [N] -> [M, N] in x's dtype."""
    m, k = x.shape
    n = weight.shape[0]
    if bias is not None:
        bias = bias.float()
    out = torch.empty(m, n, dtype=x.dtype)
    kernel = library.function("linear_bf16", "pplppllll")
    library.check(
        kernel(
            out.data_ptr(),
            x.data_ptr(),
            x.dtype == torch.bfloat16,
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            m,
            n,
            k,
            torch.get_num_threads(),
        )
    )
    return out
