"""What the launchers of linear_w4a16 and linear_mxfp4a16 share: linear_float.hpp's arguments."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def float_linear(
    name: str, x: Tensor, weight: tuple[Tensor, Tensor], bias: Tensor | None, residual: Tensor | None,
    shape: tuple[int, int], group_size: int,
) -> Tensor:  # fmt: skip
    """Call the kernel `name`: x [M, K] float32 or bfloat16, weight (data, scales) -> [M, N] in x's dtype."""
    n, k = shape
    m = x.shape[0]
    out = empty((m, n), x.dtype)
    call(
        name,
        out,
        x,
        x.dtype == torch.bfloat16,
        *weight,
        None if bias is None else bias.float(),
        residual,
        m,
        n,
        k,
        group_size,
        num_threads(),
    )
    return out
