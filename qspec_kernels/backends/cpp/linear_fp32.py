"""Launcher of linear_fp32.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def linear_fp32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [M, K], weight [N, K], bias [N], all float32 -> [M, N] float32; another x is computed in float32."""
    m, k = x.shape
    n = weight.shape[0]
    x32 = x.float()
    if bias is not None:
        bias = bias.float()
    out = torch.empty(m, n)
    kernel = library.function("linear_fp32", "ppppllll")
    library.check(
        kernel(
            out.data_ptr(),
            x32.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            m,
            n,
            k,
            torch.get_num_threads(),
        )
    )
    return out.to(x.dtype)
