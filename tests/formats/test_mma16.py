"""The bytes of the `*_mma16` orders are tensor-core operands, by the tables of NVIDIA's PTX ISA."""

import pytest
import torch
from torch import Tensor

from qspec_kernels import formats
from qspec_kernels.errors import FormatError
from qspec_kernels.formats import PackedWeight
from tests.formats.test_formats import random_codes

NAMES = ["int4_mma16", "mxfp4_mma16"]
N, K = 19, 150


def operand_place(lane: int, element: int) -> tuple[int, int]:
    """Row and column of element a0..a15 of the A operand of mma.m16n8k32 with 8-bit types.

    PTX ISA 8.5, section "Matrix Fragments for mma.m16n8k32": `groupID = %laneid >> 2`, `threadID_in_group =
    %laneid % 4`; the row is groupID for 0 <= i < 4 and 8 <= i < 12, else groupID + 8; the column is
    threadID_in_group * 4 + (i & 3) for i < 8, 16 more for the others.
    """
    group, thread = lane >> 2, lane % 4
    row = group if element < 4 or 8 <= element < 12 else group + 8
    column = thread * 4 + (element & 3) + (0 if element < 8 else 16)
    return row, column


def check_operands(name: str, codes: Tensor, data: Tensor) -> None:
    """Each lane's 16 bytes of a tile, masked and shifted as a kernel does, are its operands."""
    offset = 8 if name.startswith("int4") else 0
    n, k = codes.shape
    lanes = data.flatten(4).flatten(2, 3)
    assert lanes.shape == (2, 3, 32, 16)
    for tile in range(2):
        for block in range(3):
            for lane in range(32):
                words = lanes[tile, block, lane].unflatten(0, (2, 2, 4))
                for half in range(2):
                    # registers 0 and 1 are the low nibbles of the half's two words, 2 and 3 the high ones
                    registers = torch.cat((words[half] & 15, words[half] >> 4)).flatten()
                    for element in range(16):
                        row, column = operand_place(lane, element)
                        row, column = 16 * tile + row, 64 * block + 32 * half + column
                        inside = row < n and column < k
                        code = int(codes[row, column]) if inside else 0
                        assert int(registers[element]) == code + offset, (tile, block, lane, half, element)


@pytest.mark.parametrize("name", NAMES)
def test_words_are_operands(name: str) -> None:
    codes, scales = random_codes(name, N, K, 32)
    packed = formats.get(name).pack(codes, scales, 32)
    check_operands(name, codes, packed.data)
    assert packed.scales.shape == (5, 32)
    assert torch.equal(packed.scales[:, :N], scales.t())
    assert torch.count_nonzero(packed.scales[:, N:]) == 0


@pytest.mark.parametrize(
    "mutant",
    [
        lambda data: (data >> 4) | (data << 4),  # nibbles
        lambda data: data.transpose(4, 5),  # word (c, h) against (h, c)
        lambda data: data.flatten(2, 3).unflatten(2, (4, 8)).transpose(2, 3),  # lane g + 8 t
        lambda data: data.flip(6),  # bytes from the top
    ],
)
def test_other_orders_are_told_apart(mutant) -> None:
    codes, scales = random_codes("int4_mma16", N, K, 32)
    data = formats.get("int4_mma16").pack(codes, scales, 32).data
    with pytest.raises(AssertionError):
        check_operands("int4_mma16", codes, mutant(data).contiguous())


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_zero(name: str) -> None:
    """The whole tiles, read as a weight of that shape, hold nothing beyond what was packed."""
    packed = formats.get(name).pack(*random_codes(name, 3, 5, 32), 32)
    scales = torch.nn.functional.pad(packed.scales, (0, 0, 0, 2 - len(packed.scales)), value=1)
    values = formats.dequantize(PackedWeight(packed.data, scales, name, (16, 64), 32))
    assert values.shape == (16, 64)
    assert torch.count_nonzero(values[3:]) == 0
    assert torch.count_nonzero(values[:, 5:].nan_to_num()) == 0


def test_group_sizes_that_no_kernel_knows() -> None:
    codes, scales = random_codes("int4_mma16", 4, 96, 48)
    with pytest.raises(FormatError, match=r"group_size is 48; expected one of \(32, 64, 128\)"):
        formats.get("int4_mma16").pack(codes, scales, 48)
