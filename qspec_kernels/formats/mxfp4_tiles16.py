"""`mxfp4_tiles16`: the codes of `mxfp4` in the order that the `cpp` kernels read.

Sixteen output rows stand side by side, as in `int4_tiles16`. N is padded to a multiple of 16 and K to
a multiple of 32 (whole scale blocks), with codes of zero.

Bytes: `data` is uint8 [n16 / 16, k32 / 8, 16, 4]. Byte j of row r in chunk c of tile t holds
code[16 t + r, 8 c + j] in its low nibble and code[16 t + r, 8 c + 4 + j] in its high nibble.
`scales` is uint8 [n16 / 16, k32 / 32, 16]; rows beyond n have scale byte 0.
"""

from jaxtyping import UInt8
from torch import Tensor

from qspec_kernels.formats import _check, _layout, mxfp4
from qspec_kernels.formats.mxfp4 import BLOCK
from qspec_kernels.formats.packed import PackedWeight

# scales lie row by row, as the codes do
SCALE_ROW_AXIS = 0


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
    >>> codes = torch.tensor([[0, 1, 2, 3, 12, 13, 14, 15]], dtype=torch.uint8)
    >>> packed = pack(codes, torch.tensor([[127]]).byte())
    >>> packed.data.shape, [hex(byte) for byte in packed.data[0, 0, 0].tolist()]
    (torch.Size([1, 4, 16, 4]), ['0xc0', '0xd1', '0xe2', '0xf3'])
    """
    mxfp4.check(codes, scales, group_size)
    n, k = codes.shape
    data = _layout.pack_tiles(codes, pad=0, k_multiple=BLOCK)
    return PackedWeight(data, _layout.pack_scale_tiles(scales), "mxfp4_tiles16", (n, k), BLOCK)


def unpack(packed: PackedWeight) -> tuple[UInt8[Tensor, "n k"], UInt8[Tensor, "n blocks"]]:
    """The codes and scales that `pack` was given, bit for bit.

    Raises
    ------
    FormatError
        If the weight is packed in another order or its tensors contradict its shape.

    Examples
    --------
    >>> import torch
    >>> data = torch.zeros(1, 4, 16, 4, dtype=torch.uint8)
    >>> data[0, 0, 0] = torch.tensor([0xC0, 0xD1, 0xE2, 0xF3])
    >>> scales = torch.full((1, 1, 16), 127, dtype=torch.uint8)
    >>> unpack(PackedWeight(data, scales, "mxfp4_tiles16", (1, 8), 32))[0].tolist()
    [[0, 1, 2, 3, 12, 13, 14, 15]]
    """
    n, k = packed.shape
    _check.tiles(packed, "mxfp4_tiles16", BLOCK, k_multiple=BLOCK)
    codes = _layout.unpack_tiles(packed.data, n, k)
    return codes, _layout.unpack_scale_tiles(packed.scales, n)
