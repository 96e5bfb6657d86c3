"""How linears are cut into blocks: pure functions of the shape, the format and the architecture.

What decides a float sum (instruction, order along K, how many parts K is split into) follows from N and K
alone. How many tokens and warps share a block may follow the number of tokens M.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from qspec_kernels.backends.cuda._launch import shared_limit

# input features that a warp takes from one buffer of the ring
STAGE = 128
# below this, 8192 outputs, row tiles alone do not fill a GPU: more warps share K
FEW_ROW_TILES = 512
# numbers of rows that between them have every choice of tiles
ROWS = (8, 16, 32, 256, 257)


@dataclass(frozen=True)
class Tiles:
    """Constants of linear.cuh."""

    token_tiles: int
    warps_n: int
    warps_k: int
    stages: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps_n * self.warps_k

    def constants(self) -> dict[str, int]:
        """What linear.cuh expects to be defined."""
        return {
            "TOKEN_TILES": self.token_tiles,
            "WARPS_N": self.warps_n,
            "WARPS_K": self.warps_k,
            "STAGES": self.stages,
        }

    def grid(self, m: int, n: int) -> tuple[int, int]:
        """Blocks along tokens, which share weights and so run side by side, and along outputs."""
        return -(-m // (8 * self.token_tiles)), -(-n // (16 * self.warps_n))


def group_of(group_size: int, k: int) -> int:
    """GROUP of an int4 weight: its group size, or 0 for one scale per row."""
    return group_size if group_size < k or group_size in (32, 64, 128) else 0


@dataclass(frozen=True)
class Operand:
    """What a linear reads: bytes of an element of x and of a scale, group size (0: one scale per row), and
    whether activations have a scale per group too."""

    x_bytes: int
    scale_bytes: int
    group: int
    act_groups: bool = False

    @property
    def units(self) -> int:
        """Scale groups of the features that a warp takes at a time."""
        return STAGE // self.group if self.group else 1

    def buffer_bytes(self, tiles: Tiles) -> int:
        """Bytes of one buffer of the ring: `Buffer` of linear.cuh."""
        warps, tokens = tiles.warps_n * tiles.warps_k, 8 * tiles.token_tiles
        scales = self.units * 16 * self.scale_bytes if self.group else 0
        acts = tiles.warps_k * self.units * tokens * 4 if self.act_groups else 0
        return tokens * STAGE * tiles.warps_k * self.x_bytes + warps * (1024 + scales) + acts


def integer_shared(tiles: Tiles, operand: Operand) -> int:
    """Bytes of shared memory of a block of integer.cuh: the ring, and two sets of terms."""
    outputs = tiles.warps_n * tiles.token_tiles * 128
    sets = 2 if operand.group else 1
    terms = sets * tiles.warps_k * operand.units * outputs * 4 if tiles.warps_k > 1 else 0
    return tiles.stages * operand.buffer_bytes(tiles) + terms


def integer_tiles(m: int, n: int, k: int, operand: Operand, arch: int) -> Tiles:
    """Tiles of an integer linear: terms are added in order whatever they are, so all may follow M."""
    few = -(-n // 16) < FEW_ROW_TILES
    if m <= 16:
        tiles = Tiles(1 if m <= 8 else 2, 1, 8 if few else 4, 4)
    elif m <= 32:
        tiles = Tiles(4, 2, 4 if few else 2, 4)
    else:
        tiles = Tiles(8, 4, 2 if few and m <= 256 else 1, 4)
    while tiles.warps_k > 1 and (tiles.warps_k // 2) * STAGE >= k:
        tiles = replace(tiles, warps_k=tiles.warps_k // 2)
    return _fitting(tiles, lambda tiles: integer_shared(tiles, operand), arch)


def float_split(n: int, k: int) -> int:
    """Interleaved parts that float sums along K are made of: enough warps for one token to fill a GPU."""
    split = 8 if -(-n // 16) < FEW_ROW_TILES else 4
    while split > 1 and split // 2 * STAGE >= k:
        split //= 2
    return split


def float_shared(tiles: Tiles, operand: Operand) -> int:
    """Bytes of shared memory of a block of float.cuh: the ring, and two sets of parts."""
    outputs = tiles.warps_n * tiles.token_tiles * 128
    parts = 2 * tiles.warps_k * outputs * 4 if tiles.warps_k > 1 else 0
    return tiles.stages * operand.buffer_bytes(tiles) + parts


def float_tiles(m: int, n: int, k: int, operand: Operand, arch: int) -> Tiles:
    """Tiles of a float linear; `warps_k` divides `float_split`, whose parts a block takes in turn."""
    split = float_split(n, k)
    if m <= 16:
        tiles = Tiles(1 if m <= 8 else 2, 1, split, 4)
    elif m <= 32:
        tiles = Tiles(4, 2, min(split, 2), 4)
    else:
        tiles = Tiles(8, 4, 1, 4)
    return _fitting(tiles, lambda tiles: float_shared(tiles, operand), arch)


def _fitting(tiles: Tiles, shared: Callable[[Tiles], int], arch: int) -> Tiles:
    """As many stages as let two blocks share a multiprocessor; else as let one block fit."""
    limit = shared_limit(arch)
    for room in (limit // 2, limit):
        for stages in (4, 3, 2):
            if shared(replace(tiles, stages=stages)) <= room:
                return replace(tiles, stages=stages)
    return _fitting(replace(tiles, warps_k=tiles.warps_k // 2), shared, arch)
