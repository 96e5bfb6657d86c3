"""Kernel calls as words and bytes, in a file: they can be made again where there is no PyTorch.

The file holds the calls one after the other, numbers little-endian:

    u32 length of the kernel's name, the name, u32 number of arguments, and for each argument
    u8 kind, u64 value; behind a kind of memory follow `value` bytes

Kinds: 0 a word as program.hpp has it, 1 memory that the kernel reads and may change, 2 memory that it fills,
whose bytes are what it left there.
"""

import ctypes
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import calls, library

WORD, READ, FILLED = range(3)


class Call(NamedTuple):
    """A kernel's name, and (kind, word or bytes) for each argument."""

    kernel: str
    arguments: list[tuple[int, int | bytes]]


def with_word(call: Call, argument: int, change: int) -> Call:
    """The call with `change` added to one of its integers."""
    arguments = list(call.arguments)
    kind, value = arguments[argument]
    assert kind == WORD
    assert isinstance(value, int)
    arguments[argument] = kind, value + change
    return call._replace(arguments=arguments)


class _Outputs:
    """Stands in for a program's arena: knows the outputs of the call that comes next."""

    def __init__(self) -> None:
        self.addresses: set[int] = set()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.empty(shape, dtype=dtype)
        self.addresses.add(made.data_ptr())
        return made


class _Log:
    """Stands in for the recording of a program, but makes the calls that it notes."""

    def __init__(self, arena: _Outputs):
        self.arena = arena
        self.calls: list[Call] = []

    def add(self, name: str, words: "ctypes.Array[ctypes.c_uint64]", values: tuple[calls.Value, ...]) -> None:
        library.check(library.function(name)(words))
        arguments: list[tuple[int, int | bytes]] = []
        for word, value in zip(words, values, strict=True):
            if isinstance(value, Tensor):
                assert value.is_contiguous(), f"{name} is handed strided memory"
                kind = FILLED if value.data_ptr() in self.arena.addresses else READ
                arguments.append((kind, ctypes.string_at(value.data_ptr(), value.nbytes)))
            else:
                arguments.append((WORD, word))
        self.calls.append(Call(name, arguments))
        self.arena.addresses.clear()


def logged(run: Callable[[], object]) -> list[Call]:
    """Every kernel call that run() makes on this thread."""
    with patch.object(calls, "Recording", _Log), calls.record(_Outputs()) as log:  # type: ignore[arg-type]
        run()
    return log.calls  # type: ignore[attr-defined]


def write(path: Path, logged_calls: Iterable[Call]) -> None:
    """Write calls in the form above."""
    with path.open("wb") as file:
        for call in logged_calls:
            name = call.kernel.encode()
            file.write(struct.pack("<I", len(name)) + name + struct.pack("<I", len(call.arguments)))
            for kind, value in call.arguments:
                if isinstance(value, bytes):
                    file.write(struct.pack("<BQ", kind, len(value)) + value)
                else:
                    file.write(struct.pack("<BQ", kind, value))
