"""`mxfp4_mma16`: the codes of `mxfp4` in the order that GPU kernels read, Triton's and CUDA's alike.

Tiles of 16 output rows by 64 input features lie as in `int4_mma16`; a K step of mma.m16n8k32.s8 is one scale
block. N is padded to a multiple of 16 and K to a multiple of 64, with codes of zero.

Bytes: `data` is uint8 [n16 / 16, k64 / 64, 8 (g), 4 (t), 2 (c), 2 (h), 4 (b)]. A byte of tile i, block j
holds code[16 i + 8 h + g, 64 j + 32 c + 4 t + b] in its low nibble and the code 16 features further on in its
high nibble. `scales` is uint8 [ceil(k / 32), n16]; rows beyond n have scale byte 0.
"""

from jaxtyping import UInt8
from torch import Tensor

from qspec_kernels.formats import _check, _layout, mxfp4
from qspec_kernels.formats.mxfp4 import BLOCK
from qspec_kernels.formats.packed import PackedWeight

# scales lie group by group, so a weight's rows are their columns
SCALE_ROW_AXIS = 1


def pack(
    codes: UInt8[Tensor, "n k"], scales: UInt8[Tensor, "n blocks"], group_size: int = BLOCK
) -> PackedWeight:
    """Codes and scales as bytes.

    Raises
    ------
    FormatError
        If shapes and dtypes contradict each other or a code lies outside 0..15.

    Examples
    --------
    >>> import torch
    >>> codes = torch.zeros(1, 20, dtype=torch.uint8)
    >>> codes[0, :4], codes[0, 16:] = torch.tensor([0, 1, 2, 3]), torch.tensor([12, 13, 14, 15])
    >>> packed = pack(codes, torch.tensor([[127]]).byte())
    >>> packed.data.shape, [hex(byte) for byte in packed.data[0, 0, 0, 0, 0, 0].tolist()]
    (torch.Size([1, 1, 8, 4, 2, 2, 4]), ['0xc0', '0xd1', '0xe2', '0xf3'])
    """
    mxfp4.check(codes, scales, group_size)
    n, k = codes.shape
    data = _layout.pack_fragments(codes, pad=0)
    return PackedWeight(data, _layout.pack_scale_columns(scales), "mxfp4_mma16", (n, k), BLOCK)


def unpack(packed: PackedWeight) -> tuple[UInt8[Tensor, "n k"], UInt8[Tensor, "n blocks"]]:
    """The codes and scales that `pack` was given, bit for bit.

    Raises
    ------
    FormatError
        If the weight is packed in another order or its tensors contradict its shape.

    Examples
    --------
    >>> import torch
    >>> data = torch.zeros(1, 1, 8, 4, 2, 2, 4, dtype=torch.uint8)
    >>> data[0, 0, 0, 0, 0, 0] = torch.tensor([0xC0, 0xD1, 0xE2, 0xF3])
    >>> scales = torch.full((1, 16), 127, dtype=torch.uint8)
    >>> unpack(PackedWeight(data, scales, "mxfp4_mma16", (1, 20), 32))[0].tolist()
    [[0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 13, 14, 15]]
    """
    n, k = packed.shape
    _check.fragments(packed, "mxfp4_mma16", BLOCK)
    codes = _layout.unpack_fragments(packed.data, n, k)
    return codes, _layout.unpack_scale_columns(packed.scales, n)
