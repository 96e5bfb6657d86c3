"""Every native kernel over odd shapes: what guard pages and sanitizers watch."""

import torch
from torch import Tensor

import qspec_kernels as qk
from qspec_kernels import bounds
from tests.kernels.cases import quantized

# rows of x: every register tile, one block of many rows, and rows over
ROWS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 35, 65]
# below a vector, at its border and beside it, with a short last group; cut into parts from 1024 on
WIDTHS = [1, 7, 31, 32, 33, 100, 127, 521, 1030, 2100]
# output rows: below a tile of sixteen, one, several
OUTPUTS = [1, 3, 15, 16, 17, 33, 70]
GROUPS = [("int4", 8), ("int4", 24), ("int4", 32), ("int4", 128), ("int4", -1), ("mxfp4", 32)]


def run(rng: torch.Generator) -> None:
    """Call them all."""
    for case in (_dense, _packed, _activations, _rotations, _positions, _caches, _vocabularies, _bounds):
        case(rng)


def shapes() -> list[tuple[int, int, int]]:
    """(rows, width, outputs): each number of rows with three of the others, in turns."""
    made = []
    for i, m in enumerate(ROWS):
        for j in range(3):
            made.append((m, WIDTHS[(3 * i + j) % len(WIDTHS)], OUTPUTS[(2 * i + 3 * j) % len(OUTPUTS)]))
    # few and many rows of x against K in parts and whole tiles of outputs
    return [*made, (1, 2100, 16), (8, 1030, 16), (65, 1030, 70)]


def _dense(rng: torch.Generator) -> None:
    for m, k, n in shapes():
        x, weight = torch.randn(m, k, generator=rng), torch.randn(n, k, generator=rng)
        bias, residual = torch.randn(n, generator=rng), torch.randn(m, n, generator=rng)
        for dense in (weight, weight.bfloat16()):
            qk.linear(x, dense)
            qk.linear(x, dense, bias, residual=residual)
            qk.linear(x.bfloat16(), dense, bias, residual=residual.bfloat16())
        if m:
            qk.rescore(torch.randn(m, n, generator=rng), x, weight.bfloat16(), bias, count=5)
            qk.rescore(torch.randn(m, n, generator=rng), x.bfloat16(), weight.bfloat16(), count=n)


def _packed(rng: torch.Generator) -> None:
    for i, (m, k, n) in enumerate(shapes()):
        x, residual = torch.randn(m, k, generator=rng), torch.randn(m, n, generator=rng)
        weight, bias = torch.randn(n, k, generator=rng), torch.randn(n, generator=rng)
        for kind, group in (GROUPS[i % 5], GROUPS[5]):
            packed = quantized(kind, weight, group).packed
            qk.linear(x.bfloat16(), packed, residual=residual.bfloat16())
            for act in ("a16", "a8", "a4")[: 3 if kind == "int4" else 2]:
                qk.linear(x, packed, act=act)
                qk.linear(x, packed, bias, act=act, residual=residual)
        # a scale that is far from the others
        weight[-1, :32] *= 2.0**70
        qk.linear(x, quantized("mxfp4", weight, 32).packed, bias, residual=residual)


def _activations(rng: torch.Generator) -> None:
    for m, k, _ in shapes()[::2]:
        gain = torch.rand(k, generator=rng)
        for dtype in (torch.float32, torch.bfloat16):
            x, gates = (torch.randn(m, width, generator=rng).to(dtype) for width in (k, 2 * k))
            qk.rmsnorm(x, gain)
            qk.silu_mul(gates)
            for bits, group in ((8, None), (4, 32), (4, 7)):
                qk.quantize_act(x, bits=bits, group_size=group)
                qk.rmsnorm_quantize_act(x, gain, bits=bits, group_size=group)
                qk.silu_mul_quantize_act(gates, bits=bits, group_size=group)
        table, ids = torch.randn(9, k, generator=rng), torch.arange(m) % 9
        qk.embedding(table, ids)
        qk.embedding(table, ids, rounded=True)
        qk.embedding(table.bfloat16(), ids)


def _rotations(rng: torch.Generator) -> None:
    widths = [(1, 1), (12, 12), (40, 4), (40, 40), (48, 24), (112, 112), (344, 344), (608, 76), (1024, 1024)]
    for i, (width, block) in enumerate(widths):
        diagonal = torch.randn(width, generator=rng)
        for dtype in (torch.float32, torch.bfloat16):
            x, gates = (torch.randn(1 + 5 * i, w, generator=rng).to(dtype) for w in (width, 2 * width))
            for transpose in (False, True):
                qk.hadamard(x, block=block, transpose=transpose)
                qk.hadamard(x, block=block, transpose=transpose, diagonal=diagonal)
            for bits, group in ((8, None), (4, 7)):
                qk.hadamard_quantize_act(x, block=block, bits=bits, group_size=group)
                for factors in (None, diagonal):
                    qk.silu_mul_hadamard_quantize_act(
                        gates, block=block, diagonal=factors, bits=bits, group_size=group
                    )


def _positions(rng: torch.Generator) -> None:
    for tokens, heads, d in [(1, 1, 2), (3, 2, 6), (7, 3, 30), (17, 1, 80), (2, 1, 1040)]:
        positions, inv_freq = torch.arange(tokens) * 5, torch.rand(d // 2, generator=rng)
        for dtype in (torch.float32, torch.bfloat16):
            qk.rope(torch.randn(tokens, heads, d, generator=rng).to(dtype), positions, inv_freq)


def _caches(rng: torch.Generator) -> None:
    for d, kv_heads, group, window, lengths in [
        (2, 1, 1, None, [1]),
        (16, 1, 3, None, [70, 5]),
        (30, 2, 1, 9, [20, 3]),
        (34, 1, 2, None, [131, 1]),
        (64, 1, 40, 65, [66]),
        (80, 3, 2, None, [9]),
    ]:
        rows = torch.tensor([row for row, length in enumerate(lengths) for _ in range(length)]).int()
        positions = torch.cat([torch.arange(length) for length in lengths]).int()
        # the last row is full to its last position
        shape = len(lengths), kv_heads, max(lengths), d
        for dtype, cache_dtype in (
            (torch.float32, torch.bfloat16),
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.bfloat16),
        ):
            keys, values = (torch.randn(shape, generator=rng).to(cache_dtype) for _ in range(2))
            q, k, v = (
                torch.randn(len(rows), heads, d, generator=rng).to(dtype)
                for heads in (kv_heads * group, kv_heads, kv_heads)
            )
            qk.cache_write(keys, values, k, v, rows, positions)
            _rope_cache_write(rng, torch.cat((q, k, v), 1).flatten(1), keys, values, rows, positions)
            for some in (slice(None), slice(-1, None), slice(-3, None)):
                qk.attention(q[some], keys, values, rows[some], positions[some], scale=0.3, window=window)


def _rope_cache_write(
    rng: torch.Generator, qkv: Tensor, keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor
) -> None:
    d = keys.shape[3]
    rotary = qk.RotaryEmbedding(torch.rand(d // 2, generator=rng), 1.25)
    norm = qk.HeadNorm(torch.rand(d, generator=rng), torch.rand(d, generator=rng), 1e-5)
    qk.rope_cache_write(qkv, keys, values, rows, positions, rotary)
    qk.rope_cache_write(qkv, keys, values, rows, positions, rotary, norm)


def _vocabularies(rng: torch.Generator) -> None:
    for m, n in [(0, 5), (1, 1), (3, 7), (2, 33), (5, 2047), (1, 2048), (2, 2049), (3, 6151)]:
        x = torch.randn(m, n, generator=rng)
        numbers = torch.rand(m, generator=rng, dtype=torch.float64)
        every = torch.arange(m)
        qk.argmax(x)
        # the best id is the last one
        qk.argmax(torch.arange(float(m * n)).view(m, n))
        qk.top2(x)
        qk.top2(torch.arange(float(m * n)).view(m, n))
        p = qk.softmax(x, 0.8)
        q = p.roll(1, 1)
        qk.draw(p, numbers)
        qk.draw(p, 1 - numbers * 2**-40, rows=every.flip(0), without=every % n - 1)
        qk.draw_residual(p, q, numbers)
        qk.draw_residual(p, q, numbers, p_rows=every.flip(0), q_rows=every - 1)


def _bounds(rng: torch.Generator) -> None:
    for words in (1, 63, 64, 65, 1030):
        qk.read_pass(torch.randint(0, 99, (words,), generator=rng, dtype=torch.int32))
    for kind in bounds.PEAKS:
        qk.compute_pass(kind, 3)
