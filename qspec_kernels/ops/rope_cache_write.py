"""`rope_cache_write`: everything between the fused query, key and value projection and attention."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register
from qspec_kernels.ops.cache_write import check_slots, slots


@dataclass(frozen=True)
class RotaryEmbedding:
    """What `rope` turns by: `inv_freq` float32 [d / 2], and a factor on sine and cosine (yarn)."""

    inv_freq: Float32[Tensor, " half_d"]
    attention_scaling: float = 1.0


@dataclass(frozen=True)
class HeadNorm:
    """Gains [d] of an rmsnorm over each query head and each key head before they are turned (Qwen3)."""

    q: Float[Tensor, " d"]
    k: Float[Tensor, " d"]
    eps: float = 1e-6


def rope_cache_write(
    qkv: Float[Tensor, "t width"],
    k_cache: Float[Tensor, "b heads capacity d"],
    v_cache: Float[Tensor, "b heads capacity d"],
    rows: Int[Tensor, " t"],
    positions: Int[Tensor, " t"],
    rotary: RotaryEmbedding,
    norm: HeadNorm | None = None,
) -> Float[Tensor, "t q_heads d"]:
    """Normalise, turn and return the queries; the same for the keys, which go into the cache; values follow.

    Equals `rmsnorm` (with `norm`), `rope` and `cache_write` one after the other bit for bit, their
    roundings to qkv's dtype included.

    Parameters
    ----------
    qkv
        Query heads, then key heads, then value heads of each token, d features each.
    k_cache, v_cache, rows, positions
        As in `cache_write`.

    Raises
    ------
    UsageError
        As `cache_write` and `rope`; or if qkv's width is not a whole number of heads.
    """
    _check.floating("qkv", qkv)
    check_slots(k_cache, v_cache, rows, positions, qkv.shape[0])
    _check.same_device("k_cache", k_cache, "qkv", qkv)
    _check.shape("v_cache", v_cache, k_cache.shape, "that of k_cache")
    heads, d = k_cache.shape[1], k_cache.shape[3]
    if qkv.ndim != 2 or qkv.shape[1] % d or qkv.shape[1] // d <= 2 * heads or d % 2:
        raise UsageError(
            f"qkv has shape {list(qkv.shape)}; expected [tokens, (query heads + 2 * {heads}) * {d}] with an"
            " even number of features a head",
            "The cache says how many key and value heads there are and how wide a head is.",
        )
    if rotary.inv_freq.dtype != torch.float32:
        raise UsageError(
            f"inv_freq is {rotary.inv_freq.dtype}; expected float32",
            "Angles of far positions need its precision.",
        )
    _check.shape("inv_freq", rotary.inv_freq, (d // 2,), "one frequency per pair of features")
    q_gain = k_gain = None
    eps = 0.0
    if norm is not None:
        q_gain, k_gain, eps = norm.q, norm.k, norm.eps
        _check.shape("norm.q", q_gain, (d,), "one gain per feature of a head")
        _check.shape("norm.k", k_gain, (d,), "one gain per feature of a head")
    return _rope_cache_write(
        qkv,
        k_cache,
        v_cache,
        rows,
        positions,
        rotary.inv_freq,
        rotary.attention_scaling,
        q_gain,
        k_gain,
        eps,
    )


def _op(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    inv_freq: Tensor,
    attention_scaling: float,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
) -> Tensor:
    rows, positions = slots(k_cache, rows, positions)
    function = dispatch.find("rope_cache_write", qkv.device, torch.promote_types(qkv.dtype, k_cache.dtype))
    return function(
        qkv.contiguous(),
        k_cache,
        v_cache,
        rows,
        positions,
        inv_freq.contiguous(),
        attention_scaling,
        q_gain,
        k_gain,
        eps,
    )


def _fake(qkv: Tensor, k_cache: Tensor, *_: object) -> Tensor:
    heads, d = k_cache.shape[1], k_cache.shape[3]
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // d - 2 * heads, d)


_rope_cache_write = register(
    "rope_cache_write(Tensor qkv, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor rows, Tensor positions,"
    " Tensor inv_freq, float attention_scaling, Tensor? q_gain, Tensor? k_gain, float eps) -> Tensor",
    _op,
    _fake,
)
