"""Activations to integers."""

import torch
from torch import Tensor


def quantize_act(x: Tensor, bits: int, group_size: int, clip: float = 1.0) -> tuple[Tensor, Tensor]:
    """x [M, K] -> codes int8 [M, K] and scales [M, groups].

    The arithmetic is that of x's dtype, since its roundings are part of the format.
    """
    top = 2 ** (bits - 1) - 1
    codes, scales = [], []
    for group in x.split(group_size, dim=1):
        absmax = group.abs().max(dim=1, keepdim=True).values
        scale = absmax * clip / top
        quotient = torch.round(group / scale)
        quotient[quotient.isnan()] = 0
        quotient[(scale == 0).expand_as(quotient)] = 0
        codes.append(quotient.clamp(-top, top).to(torch.int8))
        scales.append(scale)
    return torch.cat(codes, dim=1), torch.cat(scales, dim=1)
