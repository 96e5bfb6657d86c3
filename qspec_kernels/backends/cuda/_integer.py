"""What the launchers of linear_w4a8, linear_w4a4 and linear_mxfp4a8 share: integer.cuh's arguments."""

from functools import lru_cache

from torch import Tensor

from qspec_kernels.backends.cuda import _launch
from qspec_kernels.backends.cuda._compile import Kernel
from qspec_kernels.backends.cuda._tiles import Operand, integer_shared, integer_tiles
from qspec_kernels.errors import UsageError

PARTS = ("ptx.cuh", "linear.cuh", "integer.cuh")
# with one scale per row: 16 * 8 * 127 times this, the largest sum of linear_w4a8.cu, fits into 32 bits
MAX_ROW = 131072


@lru_cache(maxsize=4096)
def kernel(
    name: str, operand: Operand, m: int, shape: tuple[int, int], arch: int, *, aligned: bool
) -> tuple[Kernel, tuple[int, int]]:
    """The compilation that serves m rows, and its grid."""
    tiles = integer_tiles(m, *shape, operand, arch)
    constants = {**tiles.constants(), "GROUP": operand.group, "ALIGNED": int(aligned)}
    made = Kernel(name, PARTS, tuple(constants.items()), tiles.threads, integer_shared(tiles, operand))
    return made, tiles.grid(m, shape[0])


def kernels(name: str, operand: Operand, m: int, shape: tuple[int, int], arch: int) -> list[Kernel]:
    """What is launched for m aligned rows."""
    return [kernel(name, operand, m, shape, arch, aligned=True)[0]]


def integer_linear(
    name: str, operand: Operand, codes: Tensor, act_scales: Tensor, weight: tuple[Tensor, Tensor],
    bias: Tensor | None, residual: Tensor | None, shape: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Launch the kernel `name`: codes int8 [M, K], act_scales float32 [M, A], weight (data, scales).

    Raises
    ------
    UsageError
        If rows with one scale are longer than 32-bit sums allow.
    """
    (n, k), m = shape, codes.shape[0]
    if operand.group == 0 and k > MAX_ROW:
        raise UsageError(
            f"k is {k} with one scale per row; the integer sums have room for {MAX_ROW}",
            "Quantise with group_size 128, 64 or 32.",
        )
    out = act_scales.new_empty(m, n)
    aligned = k % 16 == 0 and codes.data_ptr() % 16 == 0
    compiled, grid = kernel(name, operand, m, shape, _launch.arch(codes.device), aligned=aligned)
    bias = None if bias is None else bias.float()
    _launch.launch(compiled, grid, (out, codes, act_scales, *weight, bias, residual, m, n, k))
    return out
