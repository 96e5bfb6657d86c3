"""Launcher of linear_w4a4.cu."""

from torch import Tensor

from qspec_kernels.backends.cuda import _integer
from qspec_kernels.backends.cuda._compile import Kernel
from qspec_kernels.backends.cuda._tiles import Operand, group_of

READS = "int4_mma16"


def why_not(capability: tuple[int, int]) -> str:
    """Why a GPU of this compute capability does not run this kernel; empty where it does."""
    if capability[0] == 8:
        return ""
    return (
        "needs int4 tensor cores, sm_80 to sm_89; the device is sm_{}{}"
        " (Triton computes the same numbers on int8 units)".format(*capability)
    )


def operand(k: int, group_size: int) -> Operand:
    """What the kernel reads for a weight of that group size."""
    group = group_of(group_size, k)
    return Operand(x_bytes=1, scale_bytes=2, group=group, act_groups=group != 0)


def kernels(m: int, n: int, k: int, group_size: int, arch: int) -> list[Kernel]:
    """What is launched for m rows, compiled for an architecture."""
    return _integer.kernels("linear_w4a4", operand(k, group_size), m, (n, k), arch)


def linear_w4a4(
    codes: Tensor, act_scales: Tensor, data: Tensor, scales: Tensor, bias: Tensor | None,
    residual: Tensor | None, n: int, k: int, group_size: int,
) -> Tensor:  # fmt: skip
    """codes int8 [M, K], act_scales float32 [M, groups], weights ordered as READS -> float32 [M, N]."""
    weight = data, scales
    return _integer.integer_linear(
        "linear_w4a4", operand(k, group_size), codes, act_scales, weight, bias, residual, (n, k)
    )
