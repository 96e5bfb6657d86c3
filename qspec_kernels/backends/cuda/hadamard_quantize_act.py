"""Launcher of hadamard_quantize_act.cu."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from qspec_kernels.backends.cuda import _launch
from qspec_kernels.backends.cuda._compile import Kernel, refuse_capture
from qspec_kernels.errors import UsageError

# packed signs by the order of the base matrix and the device: each order has one matrix
_signs: dict[tuple[int, torch.device], Tensor] = {}


def why_not(capability: tuple[int, int], sizes: tuple[int, int] | None = None) -> str:
    """Why a GPU of this compute capability does not run this kernel; empty where it does.

    Parameters
    ----------
    sizes
        Width of a row, and order of the base matrix; None for those that this kernel serves everywhere.
    """
    reason = "" if sizes is None else _no_room(capability, *sizes)
    return reason and f"{reason} (hadamard, then quantize_act, takes any width)"


def _no_room(capability: tuple[int, int], width: int, base: int) -> str:
    needed, limit = _shared_bytes(width, base), _launch.shared_limit(10 * capability[0] + capability[1])
    if needed <= limit:
        return ""
    return (
        f"a row of {width} features takes {needed} bytes of shared memory;"
        " a block has {} on sm_{}{}".format(limit, *capability)
    )


def kernel(width: int, block: int, base: int, group_size: int, *, bf16: bool, aligned: bool) -> Kernel:
    """The compilation that serves rows of this width, rotated by blocks of base * 2^k."""
    threads = _threads(width)
    constants = {
        "THREADS": threads,
        "WIDTH": width,
        "BLOCK": block,
        "BASE": base,
        "GROUP_SIZE": group_size,
        "BF16": int(bf16),
        "ALIGNED": int(aligned),
    }
    shared = _shared_bytes(width, base)
    return Kernel("hadamard_quantize_act", ("ptx.cuh",), tuple(constants.items()), threads, shared)


def _threads(width: int) -> int:
    return min(1024, -(-width // 1024) * 32)


def _shared_bytes(width: int, base: int) -> int:
    """The row in float32, the signs of the base matrix, and a maximum of each warp."""
    signs = base * -(-base // 32) if base > 1 else 0
    words = -(-width // 32) * 32 + signs + _threads(width) // 32
    # whole 16 bytes, which the row is written by
    return -(-words // 4) * 16


def packed_signs(base: Tensor) -> Tensor:
    """int8 [m, m] -> int32 [m, ceil(m / 32)]: words of column j, whose bit i is set where H[i, j] < 0."""
    m, words = len(base), -(-len(base) // 32)
    negative = F.pad(base.cpu().T < 0, (0, 32 * words - m)).view(m, words, 32)
    return (negative.long() << torch.arange(32)).sum(2).int()


def _signs_of(base: Tensor, compiled: Kernel) -> Tensor:
    key = len(base), base.device
    if key not in _signs:
        refuse_capture(compiled)
        _signs[key] = packed_signs(base).to(base.device)
    return _signs[key]


def hadamard_quantize_act(
    x: Tensor, base: Tensor, block: int, bits: int, group_size: int, clip: float
) -> tuple[Tensor, Tensor]:
    """x [M, K] -> codes int8 [M, K], scales float32 [M, groups] of x rotated in blocks of width `block`.

    Raises
    ------
    UsageError
        If a row does not fit into the shared memory of the GPU.
    """
    m, width = x.shape
    codes = x.new_empty(m, width, dtype=torch.int8)
    scales = x.new_empty(m, -(-width // group_size), dtype=torch.float32)
    aligned = width * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0
    compiled = kernel(width, block, len(base), group_size, bf16=x.dtype == torch.bfloat16, aligned=aligned)
    if reason := _no_room(divmod(_launch.arch(x.device), 10), width, len(base)):
        raise UsageError(reason, "Rotate and quantise in two steps: hadamard, then quantize_act.")
    factor = 1.0 / math.sqrt(block)
    top = float(2 ** (bits - 1) - 1)
    signs = _signs_of(base, compiled) if len(base) > 1 else None
    _launch.launch(compiled, (m, 1), (codes, scales, x, signs, factor, float(clip), top))
    return codes, scales
