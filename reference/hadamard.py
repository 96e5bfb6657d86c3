"""The normalised Hadamard rotation."""

from torch import Tensor


def hadamard(x: Tensor, matrix: Tensor, transpose: bool = False) -> Tensor:
    """x [M, W] in blocks of the order n of `matrix` (+-1, [n, n]): y = matrix x / sqrt(n), in float64."""
    n = len(matrix)
    blocks = x.double().reshape(-1, n)
    turned = blocks @ (matrix.double() if transpose else matrix.double().T)
    return (turned / n**0.5).reshape(x.shape)
