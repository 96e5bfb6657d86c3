"""From the fused projection of queries, keys and values to what attention reads."""

from torch import Tensor

from reference.cache_write import cache_write
from reference.rmsnorm import rmsnorm
from reference.rope import rope


def rope_cache_write(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    inv_freq: Tensor,
    attention_scaling: float = 1.0,
    gains: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [T, (Hq + 2 H) D], caches [B, H, C, D] -> queries [T, Hq, D] and the caches afterwards, in float64.

    Queries and keys are normalised over each head where there are gains [D] for them, and turned.
    """
    heads, d = k_cache.shape[1], k_cache.shape[3]
    parts = qkv.double().view(len(qkv), -1, d)
    q, k, v = parts[:, : -2 * heads], parts[:, -2 * heads : -heads], parts[:, -heads:]
    if gains is not None:
        q, k = rmsnorm(q, gains[0], eps), rmsnorm(k, gains[1], eps)
    q, k = (rope(part, positions, inv_freq, attention_scaling) for part in (q, k))
    return q, *cache_write(k_cache.double(), v_cache.double(), k, v, rows, positions)
