"""`hadamard`: the online rotation, y = H x / sqrt(width)."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.hadamard_matrix import factor, hadamard_matrix, largest_block
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register


def hadamard(
    x: Float[Tensor, "*batch width"],
    *,
    block: int | None = None,
    transpose: bool = False,
    diagonal: Float[Tensor, " width"] | None = None,
) -> Float[Tensor, "*batch width"]:
    """Rotate the last dimension by the normalised Hadamard matrix, float32 inside, x's dtype outside.

    The matrix is kron(H_m, H_(2^k)) of `hadamard_matrix(width)`; it is orthonormal after division by
    sqrt(width), and H_m need not be symmetric, so the inverse is the same op with `transpose`.

    Parameters
    ----------
    block
        Rotate consecutive blocks of this width instead, each by the matrix of that order. It has to
        divide the width.
    transpose
        Multiply by the transposed matrix: the inverse rotation.
    diagonal
        Factors of the features, before the rotation or after the inverse one; in what is computed in.

    Raises
    ------
    UsageError
        If no Hadamard matrix of that order is known, or `block` does not divide the width.

    Examples
    --------
    >>> import torch
    >>> hadamard(torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    _check.floating("x", x)
    block = check_block(x.shape[-1], block)
    if diagonal is not None:
        _check.same_device("diagonal", diagonal, "x", x)
        _check.shape("diagonal", diagonal, (x.shape[-1],), "one factor per feature of x")
    return _hadamard(x, block, transpose, diagonal)


def check_block(width: int, block: int | None) -> int:
    """The block width that is meant, once it is known to have a matrix and to divide the width."""
    block = width if block is None else block
    if block < 1 or width % block:
        raise UsageError(
            f"block is {block}; expected a divisor of the width, {width}",
            f"Use block={largest_block(width)}, the largest that has a matrix.",
        )
    factor(block)
    return block


@lru_cache
def base(block: int, device: torch.device) -> Tensor:
    """The matrix H_m, int8 [m, m], for m * 2^k = block: what backends need besides the butterflies."""
    # a copy: matrices are cached and shared, and a fresh one owns aligned contiguous memory
    return hadamard_matrix(factor(block)[0]).to(device=device, copy=True)


def _op(x: Tensor, block: int, transpose: bool, diagonal: Tensor | None) -> Tensor:
    rows = x.reshape(-1, block).contiguous()
    if diagonal is not None:
        diagonal = diagonal.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    function = dispatch.find("hadamard", x.device, x.dtype)
    return function(rows, base(block, x.device), transpose, diagonal).view(x.shape)


_hadamard = register(
    "hadamard(Tensor x, int block, bool transpose, Tensor? diagonal) -> Tensor",
    _op,
    lambda x, block, transpose, diagonal: torch.empty_like(x, memory_format=torch.contiguous_format),
)
