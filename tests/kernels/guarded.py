"""`python -m tests.kernels.guarded LIBRARY LOG`: logged kernel calls on memory between forbidden pages.

Each buffer is first laid so that it ends where a page without access begins, then so that it begins where
one ends: a kernel that touches a byte beside its operands ends the process with a segmentation fault, and
the last line printed names it. Uses the standard library alone (see call_log.py for the file).
"""

import ctypes
import mmap
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

_PAGE = mmap.PAGESIZE
_NO_ACCESS = 0
_READ, _FILLED = 1, 2
# what a buffer holds before a kernel fills it
_POISON = 0xA5

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Guarded:
    """Bytes with a forbidden page on either side, flush with one of them."""

    def __init__(self, data: bytes, at_end: bool):
        room = -(-len(data) // _PAGE) * _PAGE
        self._pages = mmap.mmap(-1, room + 2 * _PAGE)
        self._view = (ctypes.c_char * len(self._pages)).from_buffer(self._pages)
        base = ctypes.addressof(self._view)
        self.address = base + _PAGE + (room - len(data) if at_end else 0)
        self.size = len(data)
        ctypes.memmove(self.address, data, len(data))
        for page in (base, base + _PAGE + room):
            if _libc.mprotect(page, _PAGE, _NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect failed")

    def bytes(self) -> bytes:
        """What the memory holds now."""
        return ctypes.string_at(self.address, self.size)


def read(data: bytes) -> Iterator[tuple[str, list[tuple[int, int | bytes]]]]:
    """Kernel names with (kind, word or bytes) of their arguments."""
    at = 0

    def take(form: str) -> tuple[int, ...]:
        nonlocal at
        values = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return values

    while at < len(data):
        (length,) = take("<I")
        name = data[at : at + length].decode()
        at += length
        arguments: list[tuple[int, int | bytes]] = []
        for _ in range(take("<I")[0]):
            kind, value = take("<BQ")
            if kind in (_READ, _FILLED):
                arguments.append((kind, data[at : at + value]))
                at += value
            else:
                arguments.append((kind, value))
        yield name, arguments


def replay(library: ctypes.CDLL, name: str, arguments: list[tuple[int, int | bytes]], at_end: bool) -> None:
    """Make one call on guarded memory; a ValueError if it fails or fills memory with other bytes."""
    buffers: list[tuple[Guarded, bytes | None]] = []
    words = []
    for kind, value in arguments:
        if isinstance(value, bytes):
            filled = kind == _FILLED
            born = bytes([_POISON]) * len(value) if filled else value
            buffers.append((Guarded(born, at_end), value if filled else None))
            words.append(buffers[-1][0].address)
        else:
            words.append(value)
    status = library[f"qspec_recorded_{name}"]((ctypes.c_uint64 * len(words))(*words))
    if status:
        raise ValueError(f"{name} returned {status}")
    for buffer, expected in buffers:
        if expected not in (None, buffer.bytes()):
            raise ValueError(f"{name} left other bytes than in the call that was logged")


def main(path: str, log: str) -> None:
    """Replay a log in both layouts, saying which call comes next."""
    library = ctypes.CDLL(path)
    if refused := library.qspec_request_tiles():
        raise OSError(refused, "the system refuses the tile registers of AMX")
    for number, (name, arguments) in enumerate(read(Path(log).read_bytes())):
        for at_end in (True, False):
            print(
                f"call {number}: {name}, flush with the page {'behind' if at_end else 'before'}", flush=True
            )
            replay(library, name, arguments, at_end)


if __name__ == "__main__":
    main(*sys.argv[1:])
