"""What the launchers of linear_w4a16 and linear_mxfp4a16 share: float.cuh's arguments."""

from functools import lru_cache

import torch
from torch import Tensor

from qspec_kernels.backends.cuda import _launch
from qspec_kernels.backends.cuda._compile import Kernel
from qspec_kernels.backends.cuda._tiles import Operand, float_shared, float_split, float_tiles

PARTS = ("ptx.cuh", "linear.cuh", "float.cuh")


@lru_cache(maxsize=4096)
def kernel(
    name: str, operand: Operand, m: int, shape: tuple[int, int], arch: int, *, bf16_out: bool, aligned: bool
) -> tuple[Kernel, tuple[int, int]]:
    """The compilation that serves m rows, and its grid."""
    tiles = float_tiles(m, *shape, operand, arch)
    constants = {
        **tiles.constants(),
        "GROUP": operand.group,
        "SPLIT": float_split(*shape),
        "BF16_OUT": int(bf16_out),
        "ALIGNED": int(aligned),
    }
    made = Kernel(name, PARTS, tuple(constants.items()), tiles.threads, float_shared(tiles, operand))
    return made, tiles.grid(m, shape[0])


def kernels(name: str, operand: Operand, m: int, shape: tuple[int, int], arch: int) -> list[Kernel]:
    """What is launched for m aligned rows, of bfloat16 and of float32."""
    return [kernel(name, operand, m, shape, arch, bf16_out=out, aligned=True)[0] for out in (True, False)]


def float_linear(
    name: str, operand: Operand, x: Tensor, weight: tuple[Tensor, Tensor], bias: Tensor | None,
    residual: Tensor | None, shape: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Launch the kernel `name` on x [M, K], rounded to bfloat16 -> [M, N] in x's dtype."""
    (n, k), m = shape, x.shape[0]
    out, rounded = x.new_empty(m, n), x.bfloat16()
    aligned = k % 8 == 0 and rounded.data_ptr() % 16 == 0
    compiled, grid = kernel(
        name, operand, m, shape, _launch.arch(x.device), bf16_out=x.dtype == torch.bfloat16, aligned=aligned
    )
    bias = None if bias is None else bias.float()
    _launch.launch(compiled, grid, (out, rounded, *weight, bias, residual, m, n, k))
    return out
