"""`PackedWeight`: the bytes of a quantised weight, and what is needed to read them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedWeight:
    """A quantised weight matrix in one byte order.

    Parameters
    ----------
    data
        The codes, uint8, in the order that the file `formats/<format>.py` documents.
    scales
        One scale per output row and group along K, in that file's order and dtype.
    format
        Name of the byte order: the name of its file in `formats/`.
    shape
        Logical (N, K): output features, input features.
    group_size
        Consecutive input features that share a scale; K for one scale per output row.
    """

    data: Tensor
    scales: Tensor
    format: str
    shape: tuple[int, int]
    group_size: int

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        return self.data.device

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales together: what one pass over the weight reads."""
        return self.data.nbytes + self.scales.nbytes

    def to(self, device: torch.device | str) -> "PackedWeight":
        """The same bytes on another device, in the same order."""
        return PackedWeight(
            self.data.to(device), self.scales.to(device), self.format, self.shape, self.group_size
        )
