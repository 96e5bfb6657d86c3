"""What ops on positions and the cache are checked on: rotary embedding, writes, attention."""

from collections.abc import Iterator

import torch

from qspec_decode.bench.gpu.case import ROWS, Case, random

# of a row of the cache, in positions: several of the pieces that attention takes it in
CAPACITY = 600


def rotary(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """rope, cache_write, and the two as one."""
    heads, kv_heads, d, capacity = 6, 2, 64, 80
    positions = torch.randint(0, capacity, (ROWS,), generator=generator, dtype=torch.int32)
    inv_freq = 10000.0 ** -(torch.arange(0, d, 2).float() / d)
    name = f"{heads}/{kv_heads} x {d} {str(dtype).removeprefix('torch.')}"
    if op == "rope":
        yield Case(
            op,
            name,
            (random(generator, dtype, ROWS, heads, d), positions, inv_freq, 1.0),
            (0, 1),
            roundings=64,
        )
        return
    rows = torch.arange(ROWS, dtype=torch.int32)
    caches = [random(generator, torch.bfloat16, ROWS, kv_heads, capacity, d) for _ in range(2)]
    if op == "cache_write":
        k, v = (random(generator, dtype, ROWS, kv_heads, d) for _ in range(2))
        yield Case(op, name, (*caches, k, v, rows, positions), tuple(range(6)), (0, 1), "same")
        return
    x = random(generator, dtype, ROWS, (heads + 2 * kv_heads) * d)
    gains = [torch.rand(d, generator=generator) + 0.5 for _ in range(2)]
    for given in ((None, None, 0.0), (*gains, 1e-6)):
        args = (x, *caches, rows, positions, inv_freq, 1.0, *given)
        yield Case(op, name, args, tuple(range(5)), (1, 2), roundings=64)


def attentions(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    """Whole heads and odd ones; all of what came before, and a window; enough for spans to be merged."""
    for heads, kv_heads, d, window in ((8, 2, 128, -1), (6, 2, 72, 100), (16, 8, 64, -1)):
        capacity, each = CAPACITY, 4
        q = random(generator, dtype, ROWS, heads, d)
        caches = [random(generator, torch.bfloat16, ROWS // each, kv_heads, capacity, d) for _ in range(2)]
        rows = torch.arange(ROWS, dtype=torch.int32) // each
        first = torch.randint(0, capacity - each, (ROWS // each,), generator=generator, dtype=torch.int32)
        positions = first.repeat_interleave(each) + torch.arange(ROWS, dtype=torch.int32) % each
        name = f"{heads}/{kv_heads} x {d} {str(dtype).removeprefix('torch.')}" + (
            " window" if window > 0 else ""
        )
        yield Case(op, name, (q, *caches, rows, positions, d**-0.5, window), (0, 3, 4), roundings=16)
