"""`KVCache`: keys and values of every layer, shared by all precisions of one model."""

import torch
from torch import Tensor

from qspec_decode.replay import Replay


class KVCache:
    """Plain storage, without lengths: what is valid is said by the positions of each call.

    `k[layer]` and `v[layer]` are [batch, num_kv_heads, capacity, head_dim], keys after rotary
    embedding, both in the checkpoint's own basis. Rolling a row back means to use smaller
    positions; nothing is moved or cleared. `replay` holds the programs of passes over this cache, where
    there are native kernels to make them of (`replayed`).
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        replayed: bool = False,
    ):
        shape = (batch, num_kv_heads, capacity, head_dim)
        # zeros, not empty: a masked score times a NaN left in fresh memory would still be NaN
        self.k: list[Tensor] = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.v: list[Tensor] = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.replay = Replay() if replayed else None
        self.batch = batch
        self.capacity = capacity

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for tensor in (*self.k, *self.v))
