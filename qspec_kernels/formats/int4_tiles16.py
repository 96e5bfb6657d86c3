"""`int4_tiles16`: the codes of `int4` in the order that the `cpp` kernels read.

Sixteen output rows stand side by side, so that one vector register holds the same K step of all of
them. N is padded to a multiple of 16 and K to a multiple of 8, with codes of zero (nibble 8).

Bytes: `data` is uint8 [n16 / 16, k8 / 8, 16, 4]. Byte j of row r in chunk c of tile t holds
code[16 t + r, 8 c + j] + 8 in its low nibble and code[16 t + r, 8 c + 4 + j] + 8 in its high nibble.
`scales` is fp16 [n16 / 16, groups, 16]; rows beyond n have scale 0.
"""

import torch
from jaxtyping import Float16, Int8
from torch import Tensor

from qspec_kernels.errors import FormatError
from qspec_kernels.formats import _check, _layout, int4
from qspec_kernels.formats.packed import PackedWeight

# scales lie row by row, as the codes do
SCALE_ROW_AXIS = 0


def pack(
    codes: Int8[Tensor, "n k"], scales: Float16[Tensor, "n groups"], group_size: int = 128
) -> PackedWeight:
    """Codes and scales as bytes.

    Raises
    ------
    FormatError
        If shapes, dtypes and group size contradict each other or a code lies outside -8..7.

    Examples
    --------
    >>> import torch
    >>> codes = torch.tensor([[-8, -7, -6, -5, 4, 5, 6, 7]], dtype=torch.int8)
    >>> packed = pack(codes, torch.tensor([[0.5]]).half(), 8)
    >>> packed.data.shape, [hex(byte) for byte in packed.data[0, 0, 0].tolist()]
    (torch.Size([1, 1, 16, 4]), ['0xc0', '0xd1', '0xe2', '0xf3'])
    """
    group = int4.check(codes, scales, group_size)
    n, k = codes.shape
    if group < k and group % _layout.CHUNK:
        raise FormatError(
            f"group_size is {group}; expected a multiple of {_layout.CHUNK}, or one group per row",
            "Quantise with group_size 32, 64, 128 or -1.",
        )
    data = _layout.pack_tiles((codes + 8).to(torch.uint8), pad=8, k_multiple=_layout.CHUNK)
    return PackedWeight(data, _layout.pack_scale_tiles(scales), "int4_tiles16", (n, k), group)


def unpack(packed: PackedWeight) -> tuple[Int8[Tensor, "n k"], Float16[Tensor, "n groups"]]:
    """The codes and scales that `pack` was given, bit for bit.

    Raises
    ------
    FormatError
        If the weight is packed in another order or its tensors contradict its shape.

    Examples
    --------
    >>> import torch
    >>> data = torch.full((1, 1, 16, 4), 0x88, dtype=torch.uint8)
    >>> data[0, 0, 0] = torch.tensor([0xC0, 0xD1, 0xE2, 0xF3])
    >>> scales = torch.full((1, 1, 16), 0.5).half()
    >>> unpack(PackedWeight(data, scales, "int4_tiles16", (1, 8), 8))[0].tolist()
    [[-8, -7, -6, -5, 4, 5, 6, 7]]
    """
    n, k = packed.shape
    _check.tiles(packed, "int4_tiles16", packed.group_size, k_multiple=_layout.CHUNK)
    codes = _layout.unpack_tiles(packed.data, n, k).to(torch.int8) - 8
    return codes, _layout.unpack_scale_tiles(packed.scales, n)
