"""The normalised Hadamard transform: butterflies for the power of two, a small product for the rest."""

import torch
from torch import Tensor

from qspec_kernels.backends.torch._matmul import blocked_matmul


def hadamard(x: Tensor, base: Tensor, transpose: bool, diagonal: Tensor | None) -> Tensor:
    """x [M, W] -> kron(H_m, H_(W/m)) x / sqrt(W), with base = H_m, int8 [m, m]; in x's dtype.

    diagonal [period * W] belongs to rows 0..period-1 of x and, from there on, again and again.
    """
    width, m = x.shape[1], base.shape[0]
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    if diagonal is not None and not transpose:
        y = _scaled(y, diagonal)
    step = 1
    while step < width // m:
        left, right = y.reshape(-1, 2, step).unbind(1)
        y = torch.stack((left + right, left - right), 1)
        step *= 2
    if m > 1:
        matrix = (base.t() if transpose else base).to(y.dtype)
        columns = y.view(-1, m, step).transpose(1, 2).reshape(-1, m)
        columns = blocked_matmul(columns, m, lambda start, stop: matrix[start:stop], None)
        y = columns.view(-1, step, m).transpose(1, 2)
    y = y.reshape(x.shape) * width**-0.5
    if diagonal is not None and transpose:
        y = _scaled(y, diagonal)
    return y.to(x.dtype)


def _scaled(rows: Tensor, diagonal: Tensor) -> Tensor:
    """Row by row, times its part of the diagonal."""
    return (rows.view(-1, len(diagonal)) * diagonal).view(rows.shape)
