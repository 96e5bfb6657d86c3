"""Launcher of linear_w4a16.cu."""

from torch import Tensor

from qspec_kernels.backends.cuda import _float
from qspec_kernels.backends.cuda._compile import Kernel
from qspec_kernels.backends.cuda._tiles import Operand, group_of

READS = "int4_mma16"


def operand(k: int, group_size: int) -> Operand:
    """What the kernel reads for a weight of that group size."""
    return Operand(x_bytes=2, scale_bytes=2, group=group_of(group_size, k))


def kernels(m: int, n: int, k: int, group_size: int, arch: int) -> list[Kernel]:
    """What is launched for m rows, compiled for an architecture."""
    return _float.kernels("linear_w4a16", operand(k, group_size), m, (n, k), arch)


def linear_w4a16(
    x: Tensor, data: Tensor, scales: Tensor, bias: Tensor | None, residual: Tensor | None, n: int, k: int,
    group_size: int,
) -> Tensor:  # fmt: skip
    """x [M, K], weights ordered as READS -> [M, N] in x's dtype, float32 or bfloat16."""
    weight = data, scales
    return _float.float_linear("linear_w4a16", operand(k, group_size), x, weight, bias, residual, (n, k))
