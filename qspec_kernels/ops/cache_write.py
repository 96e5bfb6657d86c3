"""`cache_write`: keys and values of a ragged batch of tokens into their slots of the cache."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register

CACHE_AXES = ("rows", "heads", "capacity", "d")


def cache_write(
    k_cache: Float[Tensor, "b heads capacity d"],
    v_cache: Float[Tensor, "b heads capacity d"],
    k: Float[Tensor, "t heads d"],
    v: Float[Tensor, "t heads d"],
    rows: Int[Tensor, " t"],
    positions: Int[Tensor, " t"],
) -> None:
    """k_cache[rows[t], :, positions[t]] = k[t], the same for v, in place, rounded to the cache's dtype.

    Keep keys and values in tensors of their own: of two views of one buffer, torch.compile's default backend
    copies the whole buffer at each call.

    Raises
    ------
    UsageError
        If shapes contradict each other, a cache is not contiguous, or (on CPU) a row or position lies
        outside the cache.
    """
    _check.floating("k", k)
    if v.dtype != k.dtype:
        raise UsageError(f"k is {k.dtype} and v is {v.dtype}; expected one dtype", "Convert one of them.")
    for name, tensor in (("k", k), ("v", v)):
        _check.same_device(name, tensor, "k_cache", k_cache)
    _check.axes("k_cache", k_cache, *CACHE_AXES)
    _check.shape("v_cache", v_cache, k_cache.shape, "two caches of one shape")
    expected = (k.shape[0], k_cache.shape[1], k_cache.shape[3])
    _check.shape("k", k, expected, "[tokens, heads, d] with the heads and features of the cache")
    _check.shape("v", v, k.shape, "keys and values of one shape")
    check_slots(k_cache, v_cache, rows, positions, k.shape[0])
    _cache_write(k_cache, v_cache, k, v, rows, positions)


def check_slots(k_cache: Tensor, v_cache: Tensor, rows: Tensor, positions: Tensor, tokens: int) -> None:
    """Caches can be addressed in place, and each token has a row and a position."""
    _check.floating("k_cache", k_cache)
    for name, tensor in (("v_cache", v_cache), ("rows", rows), ("positions", positions)):
        _check.same_device(name, tensor, "k_cache", k_cache)
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()) or v_cache.dtype != k_cache.dtype:
        raise UsageError(
            f"k_cache is {k_cache.dtype} with strides {k_cache.stride()} and v_cache {v_cache.dtype} with"
            f" {v_cache.stride()}; expected two contiguous tensors of one dtype",
            "Allocate both as [rows, heads, capacity, d] and pass them whole.",
        )
    _check.integers("rows", rows)
    _check.integers("positions", positions)
    _check.shape("rows", rows, (tokens,), "one cache row per token")
    _check.shape("positions", positions, (tokens,), "one position per token")


def slots(k_cache: Tensor, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """rows and positions as int32, once their values are known to lie inside the cache."""
    _check.in_range("rows", rows, k_cache.shape[0], "the rows of the cache")
    _check.in_range("positions", positions, k_cache.shape[2], "the capacity of the cache")
    return rows.to(torch.int32).contiguous(), positions.to(torch.int32).contiguous()


def _op(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor) -> None:
    rows, positions = slots(k_cache, rows, positions)
    dtype = torch.promote_types(k.dtype, k_cache.dtype)
    function = dispatch.find("cache_write", k_cache.device, dtype)
    function(k_cache, v_cache, k.contiguous(), v.contiguous(), rows, positions)


_cache_write = register(
    "cache_write(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v, Tensor rows,"
    " Tensor positions) -> ()",
    _op,
    lambda k_cache, v_cache, k, v, rows, positions: None,
)
