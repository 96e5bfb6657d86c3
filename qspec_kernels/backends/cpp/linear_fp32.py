"""Launcher of linear_fp32.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def linear_fp32(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [M, K], weight [N, K], bias [N], residual [M, N] -> [M, N] as x; computed in float32."""
    (m, k), n = x.shape, weight.shape[0]
    # a sum that is rounded to x's dtype is rounded before the residual is added
    fused = residual if x.dtype == torch.float32 else None
    out = empty((m, n))
    call(
        "linear_fp32",
        out,
        x.float(),
        weight,
        None if bias is None else bias.float(),
        fused,
        m,
        n,
        k,
        num_threads(),
    )
    out = out.to(x.dtype)
    return out if residual is None or fused is not None else residual + out
