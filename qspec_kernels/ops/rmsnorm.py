"""`rmsnorm`: root mean square normalisation over the last dimension."""

import torch
from jaxtyping import Float
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register


def rmsnorm(
    x: Float[Tensor, "*batch k"], weight: Float[Tensor, " k"], eps: float = 1e-6
) -> Float[Tensor, "*batch k"]:
    """x * rsqrt(mean(x^2) + eps) * weight, in float32 (float64 for float64 x), rounded once to x's dtype.

    Source: arXiv 1910.07467.

    Raises
    ------
    UsageError
        If the weight's shape or device is not x's.
    """
    _check.floating("x", x)
    _check.shape("weight", weight, (x.shape[-1],), "one gain per feature of x")
    _check.same_device("weight", weight, "x", x)
    return _rmsnorm(x, weight, eps)


def _op(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    weight = weight.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    return dispatch.find("rmsnorm", x.device, x.dtype)(rows, weight, eps).view(x.shape)


_rmsnorm = register(
    "rmsnorm(Tensor x, Tensor weight, float eps) -> Tensor",
    _op,
    lambda x, weight, eps: torch.empty_like(x, memory_format=torch.contiguous_format),
)
