"""Keys and values into their slots."""

from torch import Tensor


def cache_write(
    k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor
) -> None:
    """k, v [T, H, D] into caches [B, H, C, D] at (rows[t], positions[t]), int32 [T], in place."""
    slots = (rows.long(), slice(None), positions.long())
    k_cache[slots] = k.to(k_cache.dtype)
    v_cache[slots] = v.to(v_cache.dtype)
