"""Launcher of hadamard.cpp."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def hadamard(x: Tensor, base: Tensor, transpose: bool, diagonal: Tensor | None) -> Tensor:
    """x [M, W], base int8 +-1 [m, m] with W = m * 2^p -> kron(base, Sylvester) x / sqrt(W) in x's dtype.

    diagonal [period * W] belongs to rows 0..period-1 of x and, from there on, again and again.
    """
    blocks, width = x.shape
    out = empty((blocks, width), x.dtype)
    call(
        "hadamard",
        out,
        x,
        x.dtype == torch.bfloat16,
        base,
        base.shape[0],
        transpose,
        diagonal,
        1 if diagonal is None else diagonal.shape[0] // width,
        blocks,
        width,
        num_threads(),
    )
    return out
