"""Tile choices of the linears: pure functions of the shape and the architecture.

`splits` is what sums depend on, so it never looks at the number of tokens. `linear` chooses how many
features and tokens share a program, how many warps, and how far loads run ahead, which no sum depends on.
"""

from dataclasses import dataclass

from qspec_kernels.backends.triton._sizes import next_power_of_2

# AMD's devices, whose versions are numbered otherwise: what is known of them is gfx942's, of an MI300X
AMD_ARCH = 0
# multiprocessors of an architecture's usual device: a constant, so that results do not vary inside one
PROCESSORS = {AMD_ARCH: 304, 80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
# bytes of shared memory that a program can have
_KIB = {AMD_ARCH: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
SHARED = {arch: kib << 10 for arch, kib in _KIB.items()}

# tokens up to which splits of K are programs of their own; above, tiles abound and one program takes all
APART_TOKENS = 64

# in the prefill phase: features and tokens of a program, and its warps, of which four make 64 features
PREFILL = ((64, 32, 4), (128, 64, 8), (128, 128, 8), (128, 256, 8))
# tiles of features that share one of tokens while it is in the cache
TOGETHER = 8
# shared memory for the scales that go with what is loaded ahead
SCALES_ROOM = 2 << 10


@dataclass(frozen=True)
class Tile:
    """How a program is laid out: features by tokens, warps, and steps of K that are loaded ahead."""

    block_n: int
    block_m: int
    num_warps: int
    num_stages: int


def nearest(arch: int, table: dict[int, int]) -> int:
    """The table's entry of an architecture, or of the last one before it that has one."""
    return table[max(known for known in table if known <= arch)]


def splits(n: int, k: int, arch: int) -> int:
    """Into how many parts K is cut: a power of two that gives two multiprocessors three programs of 64 output
    features, while each part keeps 512 input features."""
    count = 1
    while count < 16 and 2 * -(-n // 64) * count < 3 * nearest(arch, PROCESSORS) and k >= 1024 * count:
        count *= 2
    return count


def tokens(m: int) -> int:
    """Tokens of a program: the matrix unit's least, 8, or the power of two that holds them, up to 64."""
    return min(64, max(8, next_power_of_2(m)))


def linear(m: int, n: int, arch: int, *, step_bytes: tuple[int, int], integer: bool) -> Tile:
    """The tile of a linear.

    Parameters
    ----------
    step_bytes
        Bytes that a step along K reads of one feature and of one token.
    integer
        Whether sums are of integers, exact in every order and so on every instruction; float sums stay with
        tiles of 64 features at least, which Hopper's and Blackwell's wide instructions take.
    """
    block_m, block_n, warps = tokens(m), 64, 4
    if m > 64:
        block_n, warps = 128, 8
    # sm_103 has no wide instruction for 8-bit integers; half as wide a tile gets the narrow one
    if integer and (arch == 103 or (m <= 64 and nearest(arch, PROCESSORS) * 64 > n)):
        block_n, warps = 32, 2 if block_m < 32 else 4
    if block_n >= 64 and arch // 10 in (9, 10):
        # for 8 tokens Triton 3.7 takes a narrow instruction, and sums of floats would be others
        block_m = max(16, block_m)
    least = 1
    if arch == AMD_ARCH:
        # AMD's compiler takes the matrix instruction by a tile's sizes, below 16 often none. From 32 by 32 on
        # it is the same one, so that sums of floats are
        least = 16 if integer else 32
        block_m = max(least, block_m)
    # enough ahead to keep some 32 KiB on their way, and no more than half of what there is
    half = nearest(arch, SHARED) // 2
    step = block_n * step_bytes[0] + block_m * step_bytes[1]
    if warps == 4 and half < 3 * step:
        # too little for a step in use and two on their way
        block_m = max(least, block_m // 2)
        step = block_n * step_bytes[0] + block_m * step_bytes[1]
    ahead = min(max(3, 32768 // step), 8, half // step)
    return Tile(block_n, block_m, warps, max(2, ahead))


def prefill(m: int, n: int, arch: int, *, step_bytes: tuple[int, int], widest: int) -> Tile:
    """The tile of a linear in the prefill phase: the one that takes the least time, as far as counting tells.

    Multiprocessors take tiles in waves. A tile's time is that of its products, and a weight that is expanded
    costs as much as its products with some 32 tokens.

    Parameters
    ----------
    step_bytes
        Bytes that a step along K reads of one feature and of one token.
    widest
        The most tokens whose sums fit into registers.
    """
    processors = nearest(arch, PROCESSORS)

    def time(size: tuple[int, int, int]) -> int:
        block_n, block_m, _ = size
        tiles = -(-n // block_n) * -(-m // block_m)
        return -(-tiles // processors) * block_n * (block_m + 32)

    block_n, block_m, warps = min((size for size in PREFILL if size[1] <= widest), key=time)
    w, x = block_n * step_bytes[0], block_m * step_bytes[1]
    # Hopper's instructions read x where it was copied to, so that one step more of it is held
    held = SCALES_ROOM + (x if arch // 10 == 9 else 0)
    ahead = (nearest(arch, SHARED) - held) // (w + x)
    return Tile(block_n, block_m, warps, min(max(ahead + 1, 2), 4))
