"""What the format files share: splitting rows into groups, nibbles into bytes, bytes into tiles."""

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_ROWS = 16
CHUNK = 8
FRAGMENT_K = 64

# rows are quantised in pieces of about this many elements: temporaries stay in cache, and
# the peak memory of a load stays that of the weight itself
PIECE = 1 << 19


def pieces(weight: Tensor) -> tuple[Tensor, ...]:
    """The rows of a matrix in consecutive views of about `PIECE` elements."""
    return weight.split(max(1, PIECE // weight.shape[1]))


def grouped(matrix: Tensor, group_size: int) -> Tensor:
    """[n, k] as [n, groups, group_size], the last group filled up with zeros."""
    padded = F.pad(matrix, (0, -matrix.shape[1] % group_size))
    return padded.unflatten(1, (-1, group_size))


def spread(scales: Tensor, group_size: int, k: int) -> Tensor:
    """[n, groups] as [n, k]: each scale repeated over its group."""
    return scales.repeat_interleave(group_size, dim=1)[:, :k]


def pack_pairs(nibbles: Tensor, pad: int) -> Tensor:
    """uint8 [n, k] of values 0..15 as [n, ceil(k / 2)]; the even k is the low nibble."""
    even_k = F.pad(nibbles, (0, nibbles.shape[1] % 2), value=pad)
    return even_k[:, 0::2] | (even_k[:, 1::2] << 4)


def unpack_pairs(data: Tensor, k: int) -> Tensor:
    """The inverse of `pack_pairs`."""
    pairs = (data & 15).unsqueeze(2).repeat(1, 1, 2)
    pairs[:, :, 1] = data >> 4
    return pairs.flatten(1)[:, :k].contiguous()


def pack_tiles(nibbles: Tensor, pad: int, k_multiple: int) -> Tensor:
    """uint8 [n, k] of values 0..15 as [tiles, chunks, 16, 4]; see the `*_tiles16` formats."""
    n, k = nibbles.shape
    full = F.pad(nibbles, (0, -k % k_multiple, 0, -n % TILE_ROWS), value=pad)
    tiles = full.unflatten(1, (-1, CHUNK)).unflatten(0, (-1, TILE_ROWS)).transpose(1, 2)
    return (tiles[..., :4] | (tiles[..., 4:] << 4)).contiguous()


def unpack_tiles(data: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `pack_tiles`."""
    tiles = (data & 15).repeat(1, 1, 1, 2)
    tiles[..., 4:] = data >> 4
    return tiles.transpose(1, 2).flatten(2).flatten(0, 1)[:n, :k].contiguous()


def pack_scale_tiles(scales: Tensor) -> Tensor:
    """[n, groups] as [tiles, groups, 16], scales of rows beyond n zero."""
    full = F.pad(scales, (0, 0, 0, -scales.shape[0] % TILE_ROWS))
    return full.unflatten(0, (-1, TILE_ROWS)).transpose(1, 2).contiguous()


def unpack_scale_tiles(scales: Tensor, n: int) -> Tensor:
    """The inverse of `pack_scale_tiles`."""
    return scales.transpose(1, 2).flatten(0, 1)[:n].contiguous()


def pack_fragments(nibbles: Tensor, pad: int) -> Tensor:
    """uint8 [n, k] of values 0..15 as [tiles, blocks, 8, 4, 2, 2, 4]; see the `*_mma16` formats."""
    n, k = nibbles.shape
    full = F.pad(nibbles, (0, -k % FRAGMENT_K, 0, -n % TILE_ROWS), value=pad)
    # rows are (tile, h, g), columns (block, c, nibble of the byte, t, b)
    split = full.unflatten(1, (-1, 2, 2, 4, 4)).unflatten(0, (-1, 2, 8))
    low, high = split.permute(5, 0, 3, 2, 6, 4, 1, 7)
    return (low | (high << 4)).contiguous()


def unpack_fragments(data: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `pack_fragments`."""
    split = torch.stack((data & 15, data >> 4)).permute(1, 6, 3, 2, 5, 0, 4, 7)
    return split.flatten(3).flatten(0, 2)[:n, :k].contiguous()


def pack_scale_columns(scales: Tensor) -> Tensor:
    """[n, groups] as [groups, n16], scales of rows beyond n zero."""
    return F.pad(scales, (0, 0, 0, -scales.shape[0] % TILE_ROWS)).t().contiguous()


def unpack_scale_columns(scales: Tensor, n: int) -> Tensor:
    """The inverse of `pack_scale_columns`."""
    return scales[:, :n].t().contiguous()
