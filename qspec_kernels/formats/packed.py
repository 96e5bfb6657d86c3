"""`PackedWeight`: the bytes of a quantised weight, and what is needed to read them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qspec_kernels.errors import FormatError


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

    def __post_init__(self) -> None:
        n, k = self.shape
        if min(n, k, self.group_size) < 1:
            raise FormatError(
                f"a {self.format} weight cannot have shape {list(self.shape)} and group size"
                f" {self.group_size}; expected each at least 1",
                f"Make it with qspec_kernels.formats.{self.format}.pack.",
            )
        # every order holds two codes a byte, padded at most to whole tiles of 16 rows by 64 features
        least, most = n * ((k + 1) // 2), (n + 15) // 16 * 16 * ((k + 63) // 64 * 32)
        scale_dtype = torch.float16 if self.format.startswith("int4") else torch.uint8
        fits = least <= self.data.numel() <= most and self.data.dtype == torch.uint8
        groups = -(-k // self.group_size)
        counted = n * groups <= self.scales.numel() <= (n + 15) // 16 * 16 * groups
        scaled = counted and self.scales.dtype == scale_dtype
        if not (fits and scaled and self.data.is_contiguous() and self.scales.is_contiguous()):
            raise FormatError(
                f"a {self.format} weight of shape {list(self.shape)}, group size {self.group_size}, "
                f"cannot have {self.data.dtype} data {list(self.data.shape)} and {self.scales.dtype} scales "
                f"{list(self.scales.shape)}, or they are not contiguous",
                f"Make it with qspec_kernels.formats.{self.format}.pack.",
            )

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
