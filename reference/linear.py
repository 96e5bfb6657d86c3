"""Linear layers: exact sums, and the epilogue that integer linears share."""

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] times weight [N, K] transposed, plus bias, in float64."""
    out = x.double() @ weight.double().T
    return out if bias is None else out + bias.double()


def integer_linear(
    codes: Tensor,
    act_scales: Tensor,
    weight_codes: Tensor,
    weight_scales: Tensor,
    group_size: int,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Integers codes [M, K] and weight_codes [N, K], scales [M, 1 or G] and [N, G] -> [M, N].

    Group by group: the integer sum, as a number of `dtype`, times the product of the two scales, added to
    what is there. In float32 every step rounds, and this is the definition of every integer linear.
    """
    m, n = len(codes), len(weight_codes)
    out = torch.zeros(m, n, dtype=dtype)
    for group in range(weight_scales.shape[1]):
        k = slice(group * group_size, (group + 1) * group_size)
        sums = (codes[:, None, k].long() * weight_codes[None, :, k].long()).sum(2)
        act = act_scales[:, group if act_scales.shape[1] > 1 else 0]
        scale = weight_scales[None, :, group].to(dtype) * act[:, None].to(dtype)
        out = out + sums.to(dtype) * scale
    return out if bias is None else out + bias.to(dtype)
