"""`KVCache`: keys and values of every layer, shared by all precisions of one model."""

import math

import torch
from torch import Tensor

from qspec_decode import machine
from qspec_decode.replay import Replay
from qspec_kernels import UsageError


class KVCache:
    """Plain storage, without lengths: what is valid is said by the positions of each call.

    `k[layer]` and `v[layer]` are [batch, num_kv_heads, capacity, head_dim], keys after rotary
    embedding, both in the checkpoint's own basis. Rolling a row back means to use smaller
    positions; nothing is moved or cleared. `replay` holds the programs of passes over this cache, where
    there are native kernels to make them of (`replayed`).

    Raises
    ------
    UsageError
        When there is not so much memory, saying what would fit.
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
        needed = 2 * num_layers * math.prod(shape) * dtype.itemsize
        available = machine.available_bytes() if torch.device(device).type == "cpu" else None
        if available is not None and needed > available:
            raise _too_large(batch, capacity, needed, available)
        with machine.allocating(lambda: _too_large(batch, capacity, needed, None)):
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


def _too_large(batch: int, capacity: int, needed: int, available: int | None) -> UsageError:
    """The error of a cache that there is no memory for; `available` is None where only the system knows."""
    found, fitting = "which the system refused", ""
    if available is not None:
        found = f"{machine.gb(available)} are available"
        rows, positions = available * batch // needed, available * capacity // needed
        counts = [f"{rows} such sequences"] * (rows > 0) + [f"{positions} positions each"] * (positions > 0)
        fitting = f"These would fit: {', or '.join(counts)}. " if counts else ""
    return UsageError(
        f"a KV cache of {batch} sequences x {capacity} positions needs {machine.gb(needed)}, {found}",
        f"{fitting}Decode fewer prompts at once, or lower max_new_tokens.",
    )
