"""Launcher of hadamard_quantize_act.cu."""

import math

import torch
from torch import Tensor

from qspec_kernels.backends.cuda import launch as _launch
from qspec_kernels.backends.cuda.compile import Kernel
from qspec_kernels.errors import UsageError


def kernel(width: int, block: int, base: int, group_size: int, *, bf16: bool, aligned: bool) -> Kernel:
    """The compilation that serves rows of this width, rotated by blocks of base * 2^k."""
    threads = min(1024, -(-width // 1024) * 32)
    words = -(-width // 32) * 32 + (base * -(-base // 32) if base > 1 else 0) + threads // 32
    constants = {
        "THREADS": threads,
        "WIDTH": width,
        "BLOCK": block,
        "BASE": base,
        "GROUP_SIZE": group_size,
        "BF16": int(bf16),
        "ALIGNED": int(aligned),
    }
    return Kernel("hadamard_quantize_act", ("ptx.cuh",), tuple(constants.items()), threads, 4 * words)


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
    limit = _launch.shared_limit(_launch.arch(x.device))
    if compiled.shared_bytes > limit:
        raise UsageError(
            f"a row of {width} features takes {compiled.shared_bytes} bytes of shared memory;"
            f" a block has {limit} on this GPU",
            "Rotate and quantise in two steps: hadamard, then quantize_act.",
        )
    factor = 1.0 / math.sqrt(block)
    top = float(2 ** (bits - 1) - 1)
    _launch.launch(compiled, (m, 1), (codes, scales, x, base, factor, float(clip), top))
    return codes, scales
