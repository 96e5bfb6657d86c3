"""Keys and values of tokens into a cache, one at a time."""

from torch import Tensor


def cache_write(
    k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Caches [B, H, C, D], k and v [T, H, D] -> the caches afterwards, of the same dtype.

    Token t goes to position positions[t] of cache row rows[t], rounded to the cache's dtype; all else stays.
    """
    keys, values = k_cache.clone(), v_cache.clone()
    for token, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        for head in range(k.shape[1]):
            keys[row, head, position] = k[token, head].to(keys.dtype)
            values[row, head, position] = v[token, head].to(values.dtype)
    return keys, values
