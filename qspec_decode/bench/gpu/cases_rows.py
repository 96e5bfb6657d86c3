"""What ops on the features of a row are checked on: norms, gates, rotations, quantisation, tables."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import qspec_kernels
from qspec_decode.bench.gpu.backends import function
from qspec_decode.bench.gpu.case import ROWS, Case, coded, named, random
from qspec_kernels import UsageError

# of a real model
LARGEST = 14336


def normalisations(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """rmsnorm, alone and with quantisation."""
    for k in (256, 301):
        x, gain = random(generator, dtype, ROWS, k), torch.rand(k, generator=generator) + 0.5
        name = named(k, k, dtype)
        if op == "rmsnorm":
            yield Case(op, name, (x, gain, 1e-6), roundings=4)
        else:
            for bits, group in ((8, k), (4, 32)):
                yield coded(op, name, (x, gain, 1e-6, bits, group, 1.0), _unquantised("rmsnorm", 3))


def quantisations(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """quantize_act, per token and per group."""
    for k in (256, 301):
        x = random(generator, dtype, ROWS, k)
        for bits, group in ((8, k), (4, 32), (4, 128)):
            yield Case(op, f"{named(k, k, dtype)} a{bits} g{group}", (x, bits, group, 1.0), kind="same")


def gates(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """silu_mul, alone and with quantisation."""
    for k in (256, 301):
        x, name = random(generator, dtype, ROWS, 2 * k), named(2 * k, k, dtype)
        if op == "silu_mul":
            yield Case(op, name, (x,), roundings=4)
        else:
            yield coded(op, name, (x, 8, k, 1.0), _unquantised("silu_mul", 1))


def hadamards(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """Rotations, alone, with quantisation, and of a gate."""
    # a power of two; one with a matrix; blocks within a row; as large a tile as there is
    for k, block in ((256, 256), (448, 448), (320, 64), (LARGEST, LARGEST)):
        base = hadamard_base(block)
        diagonal = torch.where(torch.rand(k, generator=generator) < 0.5, -1.0, 1.0)
        name = f"{named(k, k, dtype)} block {block}"
        if op == "hadamard":
            if block == k:
                x = random(generator, dtype, ROWS, k)
                for transpose in (False, True):
                    yield Case(op, name, (x, base, transpose, diagonal), roundings=8)
        elif op == "hadamard_quantize_act":
            x = random(generator, dtype, ROWS, k)
            for bits, group in ((8, k), (4, 32)):
                yield coded(op, name, (x, base, block, bits, group, 1.0), _rotated)
        else:
            x = random(generator, dtype, ROWS, 2 * k)
            for given in (None, diagonal):
                scaled = name + ("" if given is None else " diagonal")
                for bits, group in ((8, k), (4, 32)):
                    args = (x, base, given, block, bits, group, 1.0)
                    yield coded(op, scaled, args, _gated_rotated)


def embeddings(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """Rows of a table."""
    ids = torch.randint(0, 50, (ROWS,), generator=generator)
    for rounded in (False, True):
        table = random(generator, dtype, 50, 301)
        yield Case(op, "50x301", (table, ids, rounded, dtype), (1,), kind="same")


def _unquantised(op: str, count: int) -> Callable[..., Tensor]:
    """What the first so many arguments become before they are quantised."""
    return lambda *args: function("torch", op)(*args[:count])


def _rotated(x: Tensor, base: Tensor, block: int, *_: Any) -> Tensor:
    return function("torch", "hadamard")(x.view(-1, block), base, False, None).view(x.shape)


def _gated_rotated(x: Tensor, base: Tensor, diagonal: Tensor | None, block: int, *_: Any) -> Tensor:
    gated = function("torch", "silu_mul")(x)
    rotated = function("torch", "hadamard")(gated.view(-1, block), base, False, diagonal)
    return rotated.view(gated.shape)


def hadamard_base(width: int) -> Tensor:
    """H_m for the smallest m that has a matrix, m times a power of two being the width."""
    order = width // (width & -width)
    while True:
        try:
            return qspec_kernels.hadamard_matrix(order).clone()
        except UsageError:
            order *= 2
