"""`int4_mma16`: the codes of `int4` in the order that GPU kernels read, Triton's and CUDA's alike.

A tile of 16 output rows by 64 input features is 512 bytes, 16 for each lane of a warp, so that one load of
16 bytes a lane brings a tile in as tensor-core operands: lane 4 g + t holds four words of four bytes, and of
word (c, h) the low nibbles are register h and the high nibbles register 2 + h of the A operand of
mma.m16n8k32.s8 for the features 32 c .. 32 c + 31. N is padded to a multiple of 16 and K to a multiple of
64, with codes of zero (nibble 8).

Bytes: `data` is uint8 [n16 / 16, k64 / 64, 8 (g), 4 (t), 2 (c), 2 (h), 4 (b)]. A byte of tile i, block j
holds code[16 i + 8 h + g, 64 j + 32 c + 4 t + b] + 8 in its low nibble and the code 16 features further on,
+ 8, in its high nibble. `scales` is fp16 [groups, n16]; rows beyond n have scale 0.
"""

import torch
from jaxtyping import Float16, Int8
from torch import Tensor

from qspec_kernels.errors import FormatError
from qspec_kernels.formats import _check, _layout, int4
from qspec_kernels.formats.packed import PackedWeight

GROUP_SIZES = (32, 64, 128)

# scales lie group by group, so a weight's rows are their columns
SCALE_ROW_AXIS = 1


def pack(
    codes: Int8[Tensor, "n k"], scales: Float16[Tensor, "n groups"], group_size: int = 128
) -> PackedWeight:
    """Codes and scales as bytes.

    Raises
    ------
    FormatError
        If shapes, dtypes and group size contradict each other, the groups are of none of the sizes that the
        kernels know, or a code lies outside -8..7.

    Examples
    --------
    >>> import torch
    >>> codes = torch.zeros(1, 20, dtype=torch.int8)
    >>> codes[0, :4], codes[0, 16:] = torch.tensor([-8, -7, -6, -5]), torch.tensor([4, 5, 6, 7])
    >>> packed = pack(codes, torch.tensor([[0.5]]).half(), 20)
    >>> packed.data.shape, [hex(byte) for byte in packed.data[0, 0, 0, 0, 0, 0].tolist()]
    (torch.Size([1, 1, 8, 4, 2, 2, 4]), ['0xc0', '0xd1', '0xe2', '0xf3'])
    """
    group = int4.check(codes, scales, group_size)
    n, k = codes.shape
    if group < k and group not in GROUP_SIZES:
        raise FormatError(
            f"group_size is {group}; expected one of {GROUP_SIZES}, or one group per row",
            "Quantise with group_size 32, 64, 128 or -1.",
        )
    data = _layout.pack_fragments((codes + 8).to(torch.uint8), pad=8)
    return PackedWeight(data, _layout.pack_scale_columns(scales), "int4_mma16", (n, k), group)


def unpack(packed: PackedWeight) -> tuple[Int8[Tensor, "n k"], Float16[Tensor, "n groups"]]:
    """The codes and scales that `pack` was given, bit for bit.

    Raises
    ------
    FormatError
        If the weight is packed in another order or its tensors contradict its shape.

    Examples
    --------
    >>> import torch
    >>> data = torch.full((1, 1, 8, 4, 2, 2, 4), 0x88, dtype=torch.uint8)
    >>> data[0, 0, 0, 0, 0, 0] = torch.tensor([0xC0, 0xD1, 0xE2, 0xF3])
    >>> scales = torch.full((1, 16), 0.5).half()
    >>> unpack(PackedWeight(data, scales, "int4_mma16", (1, 20), 20))[0].tolist()
    [[-8, -7, -6, -5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 5, 6, 7]]
    """
    n, k = packed.shape
    _check.fragments(packed, "int4_mma16", packed.group_size)
    codes = _layout.unpack_fragments(packed.data, n, k).to(torch.int8) - 8
    return codes, _layout.unpack_scale_columns(packed.scales, n)
