"""The kernels that are no linears, on the widths of one model."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qspec_decode.bench import gate, sampling_case
from qspec_decode.bench.contender import Contender, Rotation
from qspec_decode.bench.sampling_case import SamplingCase
from qspec_decode.bench.shapes import ModelShape
from qspec_kernels import (
    RotaryEmbedding,
    attention,
    cache_write,
    hadamard,
    hadamard_quantize_act,
    largest_block,
    linear,
    quantize_act,
    rescore,
    rmsnorm,
    rmsnorm_quantize_act,
    rope,
    rope_cache_write,
    silu_mul,
    silu_mul_hadamard_quantize_act,
    silu_mul_quantize_act,
)

OPS = (
    "rmsnorm",
    "rmsnorm_quantize_act",
    "quantize_act",
    "silu_mul",
    "silu_mul_quantize_act",
    "hadamard_quantize_act",
    "silu_mul_hadamard_quantize_act",
    "rope_cache_write",
    "attention",
    "rescore",
    *sampling_case.OPS,
)
CONTEXT = 1024
"""Tokens in the cache where the last row attends; more where more rows are asked for."""
RESCORED = 32
_CHECKED = 8
_EPS = 1e-6


class OpCase(SamplingCase):
    """Ops on a model's widths.

    Parameters
    ----------
    ops
        Of `OPS`.
    rotation_bytes, many_rows_bytes
        As in `LinearCase`; of caches and logits.
    """

    def __init__(self, model: ModelShape, ops: Sequence[str], rotation_bytes: int, many_rows_bytes: int):
        super().__init__(model, rotation_bytes, many_rows_bytes)
        self._ops = [op for op in OPS if op in ops]
        if "rescore" in self._ops:
            few = self._random(min(model.vocab, 4096), model.hidden).bfloat16()
            self._head = few.repeat(-(-model.vocab // len(few)), 1)[: model.vocab].contiguous()

    def contenders(self, rows: int) -> list[Contender]:
        """Every op on `rows` rows, recorded and ready."""
        return [getattr(self, f"_{op}")(rows) for op in self._ops]

    def _rmsnorm(self, rows: int) -> Contender:
        x, gain = self._random(rows, self._model.hidden), self._random(self._model.hidden)

        def check() -> None:
            exact = rmsnorm(x.double(), gain.double(), _EPS)
            gate.close("rmsnorm", rmsnorm(x, gain, _EPS), exact, F.rms_norm(x, gain.shape, gain, _EPS))

        return self._in_caches("rmsnorm", x, 4.0, 4, lambda: rmsnorm(x, gain, _EPS), check)

    def _rmsnorm_quantize_act(self, rows: int) -> Contender:
        op = "rmsnorm_quantize_act"
        x, gain = self._random(rows, self._model.hidden), self._random(self._model.hidden)

        def check() -> None:
            gate.same_activation(op, rmsnorm_quantize_act(x, gain, _EPS), rmsnorm(x, gain, _EPS))

        return self._in_caches(op, x, 1.0, 8, lambda: rmsnorm_quantize_act(x, gain, _EPS), check)

    def _quantize_act(self, rows: int) -> Contender:
        x = self._random(rows, self._model.hidden)

        def check() -> None:
            gate.same_activation("quantize_act", quantize_act(x), x)

        return self._in_caches("quantize_act", x, 1.0, 4, lambda: quantize_act(x), check)

    def _silu_mul(self, rows: int) -> Contender:
        x = self._random(rows, 2 * self._model.intermediate)

        def check() -> None:
            first, second = x.chunk(2, 1)
            gate.close("silu_mul", silu_mul(x), silu_mul(x.double()), F.silu(first) * second)

        return self._in_caches("silu_mul", x, 2.0, 8, lambda: silu_mul(x), check)

    def _silu_mul_quantize_act(self, rows: int) -> Contender:
        op, x = "silu_mul_quantize_act", self._random(rows, 2 * self._model.intermediate)

        def check() -> None:
            gate.same_activation(op, silu_mul_quantize_act(x), silu_mul(x))

        return self._in_caches(op, x, 0.5, 10, lambda: silu_mul_quantize_act(x), check)

    def _hadamard_quantize_act(self, rows: int) -> Contender:
        op, x = "hadamard_quantize_act", self._random(rows, self._model.intermediate)
        block = largest_block(self._model.intermediate)

        def check() -> None:
            gate.same_activation(op, hadamard_quantize_act(x, block=block), hadamard(x, block=block))

        depth = math.ceil(math.log2(block))
        return self._in_caches(op, x, 1.0, 4 + depth, lambda: hadamard_quantize_act(x, block=block), check)

    def _silu_mul_hadamard_quantize_act(self, rows: int) -> Contender:
        op, x = "silu_mul_hadamard_quantize_act", self._random(rows, 2 * self._model.intermediate)
        block = largest_block(self._model.intermediate)

        def check() -> None:
            out = silu_mul_hadamard_quantize_act(x, block=block)
            gate.same_activation(op, out, hadamard(silu_mul(x), block=block))

        work = 10 + math.ceil(math.log2(block)) // 2
        return self._in_caches(
            op, x, 0.5, work, lambda: silu_mul_hadamard_quantize_act(x, block=block), check
        )

    def _rope_cache_write(self, rows: int) -> Contender:
        op, model = "rope_cache_write", self._model
        heads, kv_heads, d = model.heads, model.kv_heads, model.head_dim
        qkv = self._random(rows, (heads + 2 * kv_heads) * d)
        keys, values, rotation = self._caches(rows)
        positions = self._positions(rows)
        rotary = RotaryEmbedding(10000.0 ** -(torch.arange(0, d, 2).float() / d))
        slots = [torch.full((rows,), row, dtype=torch.int32) for row in range(len(keys))]

        def call(copy: int) -> Tensor:
            return rope_cache_write(qkv, keys, values, slots[copy], positions, rotary)

        def check() -> None:
            expected = keys[:1].clone(), values[:1].clone()
            q, k, v = qkv.view(rows, -1, d).split((heads, kv_heads, kv_heads), 1)
            turned = [rope(part, positions, rotary.inv_freq) for part in (q, k)]
            cache_write(*expected, turned[1], v, slots[0], positions)
            for found, wanted in zip((call(0), keys[:1], values[:1]), (turned[0], *expected), strict=True):
                gate.same(op, found, wanted)

        size = 4 * rows * (heads + 2 * kv_heads) * d + 4 * rows * heads * d + 4 * rows * kv_heads * d
        timed = rotation.recorded(self._workspace, call)
        work = 6 * rows * (heads + kv_heads) * d
        return Contender(op, model.name, rows, timed, size, work, "fp32", check, from_memory=False)

    def _attention(self, rows: int) -> Contender:
        model, scale = self._model, self._model.head_dim**-0.5
        q = self._random(rows, model.heads, model.head_dim)
        keys, values, rotation = self._caches(rows)
        positions = self._positions(rows)
        slots = [torch.full((rows,), row, dtype=torch.int32) for row in range(len(keys))]

        def call(copy: int) -> Tensor:
            return attention(q, keys, values, slots[copy], positions, scale=scale)

        def check() -> None:
            picked = torch.linspace(0, rows - 1, min(rows, _CHECKED)).round().long()
            some, where = q[picked], positions[picked]
            exact = attention(
                some.double(), keys[:1], values[:1], torch.zeros_like(where), where, scale=scale
            )
            hidden = torch.arange(keys.shape[2]) > where[:, None]
            shared = [
                cache[0].float().repeat_interleave(model.heads // model.kv_heads, 0)
                for cache in (keys, values)
            ]
            scores = torch.einsum("thd,hcd->thc", some, shared[0]) * scale
            weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(2)
            low = torch.einsum("thc,hcd->thd", weights, shared[1])
            # sums are carried from block to block of keys, and scaled anew in each
            gate.close("attention", call(0)[picked], exact, low, roundings=4)

        seen = int(positions.max()) + 1
        size = 4 * seen * model.kv_heads * model.head_dim + 2 * q.nbytes
        work = 4 * model.heads * model.head_dim * int((positions.long() + 1).sum())
        timed = rotation.recorded(self._workspace, call)
        return Contender("attention", model.name, rows, timed, size, work, "fp32", check)

    def _rescore(self, rows: int) -> Contender:
        model, head = self._model, self._head
        x, logits = self._random(rows, model.hidden), self._random(rows, model.vocab)
        size = logits.nbytes + rows * RESCORED * (2 * model.hidden + 4)
        count = max(2, -(-self._sizes[rows > 16] // size))
        # other logits are best in each, so that other rows of the matrix are read
        copies = [logits.roll(97 * copy, 1) for copy in range(count)]

        def call(copy: int) -> None:
            rescore(copies[copy], x, head, count=RESCORED)

        def check() -> None:
            for row in range(min(rows, _CHECKED)):
                out, expected = logits[row : row + 1].clone(), logits[row : row + 1].clone()
                best = expected.topk(RESCORED).indices[0]
                expected[0, best] = linear(x[row : row + 1], head[best])[0]
                rescore(out, x[row : row + 1], head, count=RESCORED)
                gate.same("rescore", out, expected)

        timed = Rotation(size, count).recorded(self._workspace, call)
        work = 2 * rows * RESCORED * model.hidden
        return Contender("rescore", model.name, rows, timed, size, work, "bf16", check)

    def _positions(self, rows: int) -> Tensor:
        capacity = max(CONTEXT, rows)
        return torch.arange(capacity - rows, capacity, dtype=torch.int32)

    def _caches(self, rows: int) -> tuple[Tensor, Tensor, Rotation]:
        """Keys, values, and whose turn it is among the sequences that they hold."""
        shape = self._model.kv_heads, max(CONTEXT, rows), self._model.head_dim
        size = 4 * math.prod(shape)
        count = max(2, -(-self._sizes[rows > 16] // size))
        keys, values = (self._random(1, *shape).bfloat16().expand(count, *shape).clone() for _ in range(2))
        return keys, values, Rotation(size, count)
