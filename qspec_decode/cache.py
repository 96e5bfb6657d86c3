"""`KVCache`: keys and values of every layer, shared by all precisions of one model."""

import math
from collections.abc import Hashable
from threading import Lock

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

    Parameters
    ----------
    spares
        Where `give_back` puts the memory, and where a cache of the same kind takes it from; `capacity` is
        then that of the memory, at least what was asked for.

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
        spares: "Spares | None" = None,
    ):
        shape = (batch, num_kv_heads, capacity, head_dim)
        self.batch = batch
        self.capacity = capacity
        self._spares = spares
        self._kind = (num_layers, batch, num_kv_heads, head_dim, dtype, torch.device(device), replayed)
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []
        self.replay: Replay | None = None
        spare = spares.take(self._kind, capacity) if spares else None
        if spare is not None:
            # what lies in it is another text's: finite, and masked like all that is beyond a row's length
            self.k, self.v, self.replay = spare
            self.capacity = self.k[0].shape[2]
            return
        needed = 2 * num_layers * math.prod(shape) * dtype.itemsize
        available = machine.free_bytes(torch.device(device))
        if available is not None and needed > available:
            raise _too_large(batch, capacity, needed, available)
        with machine.allocating(lambda: _too_large(batch, capacity, needed, None)):
            # zeros, not empty: a masked score times a NaN left in fresh memory would still be NaN
            self.k = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
            self.v = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.replay = Replay() if replayed else None

    def give_back(self) -> None:
        """End its use: neither it nor logits of passes over it are looked at any more."""
        if self._spares is not None and self.k:
            self._spares.put(self._kind, (self.k, self.v, self.replay))
            self.k, self.v, self.replay = [], [], None

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for tensor in (*self.k, *self.v))


_Memory = tuple[list[Tensor], list[Tensor], Replay | None]


class Spares:
    """Memory of caches that were given back, with the programs over it, for the next ones of their kind.

    Programs are recorded over fixed memory, so a call with fresh memory records all of its own, a tenth of
    the time of a short text.

    Parameters
    ----------
    max_bytes
        The latest are kept up to so many.
    max_bytes_beside
        And up to so many where a call takes other memory: it then needs little more than without spares.
    """

    def __init__(self, max_bytes: int = 64 << 20, max_bytes_beside: int = 64 << 20):
        self._max_bytes, self._max_bytes_beside = max_bytes, max_bytes_beside
        self._kept: list[tuple[Hashable, _Memory]] = []
        self._lock = Lock()

    def take(self, kind: Hashable, capacity: int) -> _Memory | None:
        """The least that is large enough; it is the caller's from then on."""
        with self._lock:
            fitting = [
                (memory[0][0].shape[2], index)
                for index, (other, memory) in enumerate(self._kept)
                if other == kind and memory[0][0].shape[2] >= capacity
            ]
            if fitting:
                return self._kept.pop(min(fitting)[1])[1]
            self._make_room(self._max_bytes_beside)
            return None

    def put(self, kind: Hashable, memory: _Memory) -> None:
        """Keep it; older ones make room."""
        with self._lock:
            self._kept.append((kind, memory))
            self._make_room(self._max_bytes)

    def _make_room(self, max_bytes: int) -> None:
        while self._kept and self.num_bytes > max_bytes:
            self._kept.pop(0)

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is kept, with what the programs compute in."""
        kept = [memory for _, memory in self._kept]
        caches = sum(tensor.nbytes for k, v, _ in kept for tensor in (*k, *v))
        return caches + sum(replay.num_bytes for _, _, replay in kept if replay)


def roomy(capacity: int) -> int:
    """So many positions or up to 255 more: what is given back is then large enough for the next text."""
    return -(-capacity // 256) * 256


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
