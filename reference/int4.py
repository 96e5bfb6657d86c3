"""Symmetric 4-bit integers by exhaustive search: what `int4` must produce, in float64."""

import torch
from torch import Tensor

# even codes stand first, and argmin takes the first of equals: ties go to the even code
_CODES = torch.tensor([*range(-8, 8, 2), *range(-7, 8, 2)], dtype=torch.float64)


def quantize(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes int8 [n, k] and scales fp16 [n, groups] of a finite weight [n, k]; the last group may be shorter.

    scale = absmax / 7, rounded to float32 and then fp16, at most 65504; a code is the nearest integer in
    -8..7 to the quotient weight / scale, which the format defines as rounded to float32.
    """
    codes, scales = [], []
    for group in weight.float().double().split(group_size, dim=1):
        scale = (group.abs().amax(1) / 7).float().clamp(max=65504).half()
        divisor = scale.double()[:, None]
        quotient = torch.where(divisor == 0, 0.0, group / divisor).float().double()
        nearest = (quotient.clamp(-9, 9)[:, :, None] - _CODES).abs().argmin(2)
        codes.append(_CODES[nearest].to(torch.int8))
        scales.append(scale)
    return torch.cat(codes, 1), torch.stack(scales, 1)


def dequantize(codes: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """The float64 values code * scale."""
    groups = codes.double().split(group_size, dim=1)
    return torch.cat([group * scales[:, g : g + 1].double() for g, group in enumerate(groups)], 1)
