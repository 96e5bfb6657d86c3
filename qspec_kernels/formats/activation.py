"""`QuantizedActivation`: activations as signed integers, quantised once and read by many linears."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QuantizedActivation:
    """Symmetric integer activations; the value is code * scale.

    A row of zeros has scale 0 and codes 0. A row with a NaN has scale NaN and codes 0.

    Parameters
    ----------
    codes
        int8 [..., k], within -127..127 (`bits` 8) or -7..7 (`bits` 4).
    scales
        float32 [..., groups]: one per token, or one per token and `group_size` consecutive k.
    bits
        8 or 4.
    group_size
        Consecutive k that share a scale; k itself for one scale per token.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    group_size: int

    @property
    def shape(self) -> torch.Size:
        """The shape of the activation that was quantised."""
        return self.codes.shape

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.codes.device
