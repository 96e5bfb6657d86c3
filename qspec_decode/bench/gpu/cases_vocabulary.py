"""What ops on rows as wide as a vocabulary are checked on: logits, choices, draws."""

from collections.abc import Iterator

import torch
from torch import Tensor

from qspec_decode.bench.gpu.backends import function
from qspec_decode.bench.gpu.case import ROUNDED_TOGETHER, ROWS, Case, named, random

# as large as a vocabulary gets, and of no whole number of pieces
WIDEST = 262143


def rescores(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """The largest logits, computed again."""
    n, k = 5000, 256
    logits = random(generator, torch.float32, ROWS, n)
    x = random(generator, torch.bfloat16, ROWS, k).to(dtype)
    weight, bias = random(generator, torch.bfloat16, n, k), random(generator, torch.float32, n)
    yield Case(
        op, named(k, n, dtype), (logits, x, weight, bias, 16), (0, 1), (0,), roundings=k // ROUNDED_TOGETHER
    )


def choices(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """argmax, top2 and softmax: logits, and logits most of which are masked."""
    for n in (301, 40001):
        x = random(generator, dtype, ROWS, n)
        masked = x.masked_fill(torch.rand(ROWS, n, generator=generator) < 0.9, -torch.inf)
        if op == "softmax":
            yield Case(op, f"{n}", (x, 0.3), roundings=16)
            yield Case(op, f"{n} masked", (masked, 0.8), roundings=16)
            continue
        yield Case(op, f"{n}", (x,), kind="same")
        # several are the highest, anywhere; some rows have no choice
        masked.scatter_(1, torch.randint(0, n, (ROWS, 5), generator=generator), 9.0)
        masked[1], masked[2, n // 2], masked[3, -1] = -torch.inf, torch.nan, torch.inf
        yield Case(op, f"{n} masked, ties", (masked,), kind="same")


def draws(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """draw and draw_residual: from a row of their own each, and from a few that are as wide as they come."""
    uniforms = torch.rand(ROWS, dtype=torch.float64, generator=generator)
    for n, count in ((5003, ROWS), (WIDEST, 3)):
        p, q = (_weights(generator, dtype, count, n) for _ in range(2))
        rows = None if count == ROWS else torch.randint(0, count, (ROWS,), generator=generator)
        places = (0,) if rows is None else ()
        if op == "draw":
            without = function("torch", "draw")(p, uniforms, rows, None)
            without[::3] = -1
            for given in (None, without):
                name = f"{n}{'' if given is None else ' without'}"
                args, by_row = (p, uniforms, rows, given), (*places, 1, *_present(2, rows, given))
                yield Case(op, name, args, by_row, kind="same")
            continue
        # nothing is left of this one
        q[0] = p[0]
        others = None if rows is None else torch.randint(-1, count, (ROWS,), generator=generator)
        args, by_row = (p, q, uniforms, rows, others), (*places, *(1 for _ in places), 2)
        yield Case(op, f"{n}", args, (*by_row, *_present(3, rows, others)), kind="same")


def _present(first: int, *arguments: Tensor | None) -> tuple[int, ...]:
    """Places of those arguments that there are."""
    return tuple(place for place, one in enumerate(arguments, first) if one is not None)


def _weights(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Whole numbers, whose sums are exact in any order; most of them 0."""
    some = torch.rand(shape, generator=generator) < 0.3
    return torch.randint(0, 64, shape, generator=generator).to(dtype) * some
