"""How launchers call kernels: at once, or while a program is being recorded into that program."""

import bisect
import ctypes
import math
import struct
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library

Value = Tensor | int | float | None

_ALIGNMENT = 64
_state = threading.local()


class Arena:
    """Memory for the tensors of programs.

    A piece goes back when the last tensor over it is gone and may then serve another; the addresses stay
    good for as long as the arena lives.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, Tensor] = {}
        self._starts: list[int] = []
        self._free: list[tuple[int, int]] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, aligned to a cache line."""
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        size = -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        found = bisect.bisect_left(self._free, (size, 0))
        # a piece much larger than what is wanted is left for those that need it
        if found < len(self._free) and self._free[found][0] <= 4 * size:
            piece = self._free.pop(found)
        else:
            piece = size, self._grow(size)
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(piece[1])
        weakref.finalize(memory, bisect.insort, self._free, piece).atexit = False
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    def borrow(self, tensor: Tensor) -> Tensor:
        """A tensor over the same contiguous memory that does not keep the piece from being reused."""
        count = tensor.numel()
        memory = (ctypes.c_char * (count * tensor.itemsize)).from_address(tensor.data_ptr())
        # the memory itself must not go while the tensor is there
        memory._arena = self  # type: ignore[attr-defined]
        return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape) if count else tensor

    def owns(self, tensor: Tensor) -> bool:
        """Whether the tensor's memory is the arena's."""
        address = tensor.data_ptr()
        before = bisect.bisect_right(self._starts, address) - 1
        if before < 0:
            return False
        start = self._starts[before]
        return address < start + self._blocks[start].nbytes

    @property
    def num_bytes(self) -> int:
        """Bytes taken from the system."""
        return sum(block.nbytes for block in self._blocks.values())

    def _grow(self, size: int) -> int:
        block = torch.empty(size, dtype=torch.uint8)
        start = block.data_ptr()
        self._blocks[start] = block
        bisect.insort(self._starts, start)
        return start


class Recording:
    """Kernel calls in order, ready to be replayed; it keeps what they read alive."""

    def __init__(self, arena: Arena):
        self.arena = arena
        self._library = library.load()
        self._kept: list[Tensor] = []
        self._words: list[ctypes.Array[ctypes.c_uint64]] = []
        self._calls: list[int] = []
        self._native: ctypes.Array[ctypes.c_uint64] | None = None

    def __len__(self) -> int:
        return len(self._words)

    def add(self, name: str, words: "ctypes.Array[ctypes.c_uint64]", values: tuple[Value, ...]) -> None:
        """Note one call of the kernel `name`."""
        kernel = ctypes.cast(library.function(name), ctypes.c_void_p).value or 0
        self._words.append(words)
        self._calls += kernel, ctypes.addressof(words)
        # tensors of the arena are not kept, so that their memory can serve later calls
        self._kept += [v for v in values if isinstance(v, Tensor) and not self.arena.owns(v)]

    def replay(self) -> None:
        """Run the calls, on whatever the memory they read holds now."""
        if self._native is None:
            self._native = (ctypes.c_uint64 * len(self._calls))(*self._calls)
        library.check(self._library.handle.qspec_replay(self._native, ctypes.c_int64(len(self))))


def recording() -> Recording | None:
    """What this thread's calls are recorded into at present."""
    return getattr(_state, "recording", None)


@contextmanager
def record(arena: Arena) -> Iterator[Recording]:
    """Note this thread's calls instead of making them."""
    outer = recording()
    _state.recording = Recording(arena)
    try:
        yield _state.recording
    finally:
        _state.recording = outer


def num_threads() -> int:
    """Threads that a kernel may use: PyTorch's number, or what it was when `exclusive_threads` began."""
    return getattr(_state, "threads", 0) or torch.get_num_threads()


@contextmanager
def exclusive_threads() -> Iterator[None]:
    """Kernels keep their number of threads while PyTorch has one."""
    if getattr(_state, "threads", 0):
        yield
        return
    _state.threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_state.threads)
        _state.threads = 0


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for a kernel's output."""
    active = recording()
    return torch.empty(shape, dtype=dtype) if active is None else active.arena.empty(shape, dtype)


def call(name: str, *values: Value, at_once: bool = False) -> None:
    """Run the kernel qspec_<name>; while a program is being recorded, note it for that.

    A tensor stands for its memory, None for no memory. With `at_once` the kernel runs in either case, for
    callers that read its results.
    """
    words = (ctypes.c_uint64 * len(values))(*map(_word, values))
    active = recording()
    if active is None or at_once:
        library.check(library.function(name)(words))
    if active is not None:
        active.add(name, words, values)


def _word(value: Value) -> int:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, float):
        return struct.unpack("<I", struct.pack("<f", value))[0]
    return (value or 0) % (1 << 64)
