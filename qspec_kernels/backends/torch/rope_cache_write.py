"""From the fused projection to queries and a filled cache: head norms, rotary embedding, cache write."""

import torch
from torch import Tensor

from qspec_kernels.backends.torch.cache_write import cache_write
from qspec_kernels.backends.torch.rmsnorm import rmsnorm
from qspec_kernels.backends.torch.rope import rope


def rope_cache_write(
    x: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor, positions: Tensor, inv_freq: Tensor,
    scaling: float, q_gain: Tensor | None, k_gain: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    """x [T, (Hq + 2 Hkv) * D], caches [B, Hkv, C, D], rows and positions int32 [T] -> queries [T, Hq, D]."""
    _, heads, _, dim = k_cache.shape
    q, k, v = x.unflatten(1, (-1, dim)).split((x.shape[1] // dim - 2 * heads, heads, heads), 1)
    q, k = _norm(q, q_gain, eps), _norm(k, k_gain, eps)
    cache_write(k_cache, v_cache, rope(k, positions, inv_freq, scaling), v, rows, positions)
    return rope(q, positions, inv_freq, scaling)


def _norm(heads: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    if gain is None:
        return heads
    gain = gain.to(torch.promote_types(heads.dtype, torch.float32))
    return rmsnorm(heads.reshape(-1, heads.shape[2]), gain, eps).view(heads.shape)
