"""`rmsnorm_quantize_act`: normalise and quantise in one pass, for the input of a quantised linear."""

import torch
from jaxtyping import Float
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.formats import QuantizedActivation
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register
from qspec_kernels.ops.quantize_act import check_quantization, fake


def rmsnorm_quantize_act(
    x: Float[Tensor, "*batch k"],
    weight: Float[Tensor, " k"],
    eps: float = 1e-6,
    *,
    bits: int = 8,
    group_size: int | None = None,
    clip: float = 1.0,
) -> QuantizedActivation:
    """`quantize_act(rmsnorm(x, weight, eps), ...)`, bit for bit, the rounding to x's dtype included.

    Parameters and errors are those of `rmsnorm` and `quantize_act`.
    """
    _check.floating("x", x)
    _check.shape("weight", weight, (x.shape[-1],), "one gain per feature of x")
    _check.same_device("weight", weight, "x", x)
    group_size = check_quantization(x.shape[-1], bits, group_size, clip)
    codes, scales = _rmsnorm_quantize_act(x, weight, eps, bits, group_size, clip)
    return QuantizedActivation(codes, scales, bits, group_size)


def _op(
    x: Tensor, weight: Tensor, eps: float, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    weight = weight.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    function = dispatch.find("rmsnorm_quantize_act", x.device, x.dtype)
    codes, scales = function(rows, weight, eps, bits, group_size, clip)
    return codes.view(x.shape), scales.view(*x.shape[:-1], scales.shape[1])


_rmsnorm_quantize_act = register(
    "rmsnorm_quantize_act(Tensor x, Tensor weight, float eps, int bits, int group_size, float clip)"
    " -> (Tensor, Tensor)",
    _op,
    lambda x, weight, eps, bits, group_size, clip: fake(x, group_size),
)
