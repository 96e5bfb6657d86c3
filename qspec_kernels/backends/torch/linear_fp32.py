"""Dense linear in float32, or in float64 for float64 input."""

import torch
from torch import Tensor

from qspec_kernels.backends.torch._linear import plus
from qspec_kernels.backends.torch._matmul import blocked_matmul


def linear_fp32(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [M, K], weight [N, K], bias [N] -> [M, N] in x's dtype."""
    work = torch.promote_types(x.dtype, torch.float32)
    out = blocked_matmul(x.to(work), weight.shape[0], lambda start, stop: weight[start:stop].to(work), bias)
    return plus(residual, out.to(x.dtype))
