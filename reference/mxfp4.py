"""MXFP4 by exhaustive search: what `mxfp4` must produce, in float64.

Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 (E2M1), 5.4.1 (E8M0) and 6.3.
"""

import torch
from torch import Tensor

_MAGNITUDES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
# even codes stand first, and argmin takes the first of equals: ties go to the even code
_ORDER = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
_EXPONENTS = torch.arange(-127, 128, dtype=torch.float64)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [n, k] and scale bytes uint8 [n, ceil(k / 32)] of a weight [n, k] without infinities."""
    codes, scales = [], []
    for block in weight.double().split(32, dim=1):
        absmax = block.abs().amax(1)
        # the largest exponent e with 4 * 2^e <= absmax, where 4 is the largest power of two of E2M1
        exponent = (absmax[:, None] >= 4 * 2**_EXPONENTS).sum(1) - 1
        exponent = exponent.clamp(min=0) - 127
        scaled = block / 2.0 ** exponent.double()[:, None]
        distances = (scaled.abs().clamp(max=8)[:, :, None] - _MAGNITUDES[_ORDER]).abs()
        code = _ORDER[distances.argmin(2)] + 8 * block.signbit()
        is_nan = absmax.isnan()
        codes.append(torch.where(is_nan[:, None], 0, code).to(torch.uint8))
        scales.append(torch.where(is_nan, 255, exponent + 127).to(torch.uint8))
    return torch.cat(codes, 1), torch.stack(scales, 1)


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """The float64 values +-magnitude * 2^(scale - 127); NaN in blocks of scale 255."""
    blocks = []
    for b, block in enumerate(codes.split(32, dim=1)):
        scale = scales[:, b : b + 1].double()
        factor = torch.where(scale == 255, torch.nan, 2.0 ** (scale - 127))
        sign = 1.0 - 2.0 * (block >= 8)
        blocks.append(sign * _MAGNITUDES[block.long() % 8] * factor)
    return torch.cat(blocks, 1)
