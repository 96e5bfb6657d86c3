"""`embedding`: rows of a table, by id."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register


def embedding(
    table: Float[Tensor, "entries k"],
    ids: Int64[Tensor, " t"],
    *,
    rounded: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "t k"]:
    """table[ids] in `dtype`: the start of a forward pass, or the tokens whose logits are wanted.

    Parameters
    ----------
    rounded
        Round the entries to bfloat16 on the way.
    dtype
        torch.float32 or torch.float64.

    Raises
    ------
    UsageError
        If a shape or dtype is another, or (on CPU) an id lies outside the table.
    """
    _check.floating("table", table)
    if table.ndim != 2 or ids.ndim != 1 or ids.dtype != torch.int64:
        raise UsageError(
            f"table has shape {list(table.shape)} and ids are {ids.dtype} {list(ids.shape)};"
            " expected [entries, features] and int64 [tokens]"
        )
    if dtype not in (torch.float32, torch.float64):
        raise UsageError(f"dtype is {dtype}; expected torch.float32 or torch.float64")
    _check.same_device("ids", ids, "table", table)
    return _embedding(table, ids, rounded, dtype)


def _op(table: Tensor, ids: Tensor, rounded: bool, dtype: torch.dtype) -> Tensor:
    _check.in_range("ids", ids, table.shape[0], "the entries of the table")
    function = dispatch.find("embedding", table.device, torch.promote_types(table.dtype, dtype))
    return function(table.contiguous(), ids.contiguous(), rounded, dtype)


_embedding = register(
    "embedding(Tensor table, Tensor ids, bool rounded, ScalarType dtype) -> Tensor",
    _op,
    lambda table, ids, rounded, dtype: table.new_empty(ids.shape[0], table.shape[1], dtype=dtype),
)
