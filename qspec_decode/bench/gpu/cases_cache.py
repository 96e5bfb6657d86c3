"""What ops on positions and the cache are checked on: rotary embedding, writes, attention."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from qspec_decode.bench.gpu.backends import function
from qspec_decode.bench.gpu.case import ROWS, Case, random

# of a row of the cache, in positions: several of the pieces that attention takes it in
CAPACITY = 600
# of one that is written into
WRITTEN = 40
# tokens that batches verify at once: tiles are shared out otherwise than for a few
VERIFIED = (128, 320)
# features of a head: as many as usual, and as many as there are
WIDTHS = (64, 256)


def rotary(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """rope, cache_write, and the two as one; tokens in float32 also into a cache in float32."""
    heads, kv_heads, capacity = 6, 2, WRITTEN
    positions = torch.randint(0, capacity, (ROWS,), generator=generator, dtype=torch.int32)
    rows = torch.arange(ROWS, dtype=torch.int32)
    for d in WIDTHS:
        inv_freq = 10000.0 ** -(torch.arange(0, d, 2).float() / d)
        name = _named(heads, kv_heads, d, dtype)
        if op == "rope":
            x = random(generator, dtype, ROWS, heads, d)
            args = (x, positions, inv_freq, 1.0)
            yield Case(op, name, args, (0, 1), floats=_turned(op, 2), roundings=64)
            continue
        for cached in (torch.bfloat16, torch.float32) if dtype == torch.float32 else (torch.bfloat16,):
            into = _into(name, cached)
            caches = [random(generator, cached, ROWS, kv_heads, capacity, d) for _ in range(2)]
            if op == "cache_write":
                k, v = (random(generator, dtype, ROWS, kv_heads, d) for _ in range(2))
                yield Case(op, into, (*caches, k, v, rows, positions), tuple(range(6)), (0, 1), "same")
                continue
            x = random(generator, dtype, ROWS, (heads + 2 * kv_heads) * d)
            gains = [torch.rand(d, generator=generator) + 0.5 for _ in range(2)]
            for given in ((None, None, 0.0), (*gains, 1e-6)):
                args = (x, *caches, rows, positions, inv_freq, 1.0, *given)
                yield Case(op, into, args, tuple(range(5)), (1, 2), floats=_turned(op, 5), roundings=64)


def attentions(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """Whole heads, odd ones and wide ones; all of what came before, and a window; enough for spans to be
    merged; queries in float32 also over a cache in float32."""
    capacity, each = CAPACITY, 4
    for heads, kv_heads, d, window, cached in (
        (8, 2, 128, -1, torch.bfloat16),
        (6, 2, 72, 100, torch.bfloat16),
        (4, 2, 256, -1, torch.bfloat16),
        (8, 2, 128, -1, torch.float32),
        (16, 8, 64, -1, torch.bfloat16),
    ):
        if cached == torch.float32 and dtype != cached:
            continue
        q = random(generator, dtype, ROWS, heads, d)
        caches = [random(generator, cached, ROWS // each, kv_heads, capacity, d) for _ in range(2)]
        rows = torch.arange(ROWS, dtype=torch.int32) // each
        first = torch.randint(0, capacity - each, (ROWS // each,), generator=generator, dtype=torch.int32)
        positions = first.repeat_interleave(each) + torch.arange(ROWS, dtype=torch.int32) % each
        name = _into(_named(heads, kv_heads, d, dtype), cached) + (" window" if window > 0 else "")
        args = (q, *caches, rows, positions, d**-0.5, window)
        yield Case(op, name, args, (0, 3, 4), roundings=16, repeated=VERIFIED)


def _turned(op: str, place: int) -> Callable[..., Any]:
    """The op in float64, but for angles: frequencies, at that place, are float32, and so are they."""
    run = function("torch", op)
    return lambda *args: run(*args[:place], args[place].float(), *args[place + 1 :])


def _named(heads: int, kv_heads: int, d: int, dtype: torch.dtype) -> str:
    return f"{heads}/{kv_heads} x {d} {str(dtype).removeprefix('torch.')}"


def _into(name: str, cached: torch.dtype) -> str:
    return name if cached == torch.bfloat16 else f"{name}, cache {str(cached).removeprefix('torch.')}"
