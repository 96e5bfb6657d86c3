"""Activations to integers, per token or per token and group."""

import torch
from torch import Tensor
from torch.nn import functional as F


def quantize_act(x: Tensor, bits: int, group_size: int, clip: float) -> tuple[Tensor, Tensor]:
    """x [M, K] -> codes int8 [M, K], scales [M, groups] in float32 (float64 for float64 x)."""
    k = x.shape[1]
    top = 2 ** (bits - 1) - 1
    work = x.to(torch.promote_types(x.dtype, torch.float32))
    groups = F.pad(work, (0, -k % group_size)).unflatten(1, (-1, group_size))
    scales = groups.abs().amax(2, keepdim=True).mul_(clip).div_(top)
    # 0 / 0 and anything / NaN are NaN, which stands for code 0
    codes = groups.div(scales).round_().nan_to_num_(nan=0.0).clamp_(-top, top)
    codes = torch.where(scales == 0, 0.0, codes)
    return codes.flatten(1)[:, :k].to(torch.int8), scales.squeeze(2)
