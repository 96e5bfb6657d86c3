"""`attention`: a ragged batch of query tokens over a shared key-value cache."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register
from qspec_kernels.ops.cache_write import CACHE_AXES, check_slots, slots


def attention(
    q: Float[Tensor, "t q_heads d"],
    k_cache: Float[Tensor, "b heads capacity d"],
    v_cache: Float[Tensor, "b heads capacity d"],
    rows: Int[Tensor, " t"],
    positions: Int[Tensor, " t"],
    *,
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "t q_heads d"]:
    """Causal attention: token t attends to the keys 0..positions[t] of cache row rows[t].

    Prefill, decoding and verification are the same op: how many tokens each row brings is data. What
    the cache holds beyond a token's position is never looked at. Keys are taken in blocks of fixed size
    at absolute positions, softmax is in float32 (float64 for float64 q) and carried from block to block,
    so memory grows with the tokens, not with their squares, and a token's result is bit-identical
    whatever other tokens are in the call.

    Parameters
    ----------
    q
        Query head h reads cache head h // (q_heads // heads).
    scale
        Multiplies q . k, usually 1 / sqrt(d).
    window
        Attend only to keys at positions above positions[t] - window; None for all.

    Returns
    -------
    q's dtype.

    Raises
    ------
    UsageError
        If shapes contradict each other, or (on CPU) a row or position lies outside the cache.

    Source: online softmax, arXiv 1805.02867.
    """
    _check.floating("q", q)
    _check.axes("q", q, "tokens", "q_heads", "d")
    _check.axes("k_cache", k_cache, *CACHE_AXES)
    if 0 in k_cache.shape[1:]:
        raise UsageError(
            f"k_cache has shape {list(k_cache.shape)}; expected at least one head, slot and feature",
            "Allocate the cache with a capacity for the prompt and what is generated.",
        )
    _check.same_device("k_cache", k_cache, "q", q)
    tokens, q_heads, d = q.shape
    heads = k_cache.shape[1]
    if d != k_cache.shape[3] or q_heads % heads:
        raise UsageError(
            f"q has {q_heads} heads of {d} features, the cache {heads} of {k_cache.shape[3]};"
            " expected equal features and a multiple of the cache's heads",
            "Allocate the cache for the model that makes q.",
        )
    if window is not None and window < 1:
        raise UsageError(f"window is {window}; expected at least 1", "None attends to all earlier keys.")
    _check.shape("v_cache", v_cache, k_cache.shape, "two caches of one shape")
    check_slots(k_cache, v_cache, rows, positions, tokens)
    return _attention(q, k_cache, v_cache, rows, positions, scale, -1 if window is None else window)


def _op(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor, positions: Tensor, scale: float, window: int
) -> Tensor:
    rows, positions = slots(k_cache, rows, positions)
    function = dispatch.find("attention", q.device, torch.promote_types(q.dtype, k_cache.dtype))
    return function(q.contiguous(), k_cache, v_cache, rows, positions, scale, window)


_attention = register(
    "attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor rows, Tensor positions, float scale,"
    " int window) -> Tensor",
    _op,
    lambda q, k_cache, v_cache, rows, positions, scale, window: torch.empty_like(
        q, memory_format=torch.contiguous_format
    ),
)
