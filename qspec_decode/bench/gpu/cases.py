"""What every kernel is checked on: arguments of `ROWS` tokens, of which a call takes the first M.

Arguments are those of the torch backend's file of the op, packed weights in place of their bytes and scales.
All lie on the CPU, and are the same in every run.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import qspec_kernels
from qspec_decode.bench.gpu.backends import function
from qspec_kernels import UsageError, formats, quantize_act

ROWS = 64
# inputs, outputs: whole tiles; tails everywhere; long sums, cut in parts, of a shape that ends within a tile
SHAPES = ((256, 64), (300, 70), (2112, 144))
GROUPS = (32, 64, 128, -1)
LINEARS = ("fp32", "bf16", "w4a16", "w4a8", "w4a4", "mxfp4a16", "mxfp4a8")
# matrix units add several products at a time and cut off what does not fit
_ROUNDED_TOGETHER = 32


@dataclass(frozen=True)
class Case:
    """One op on arguments of one kind.

    Parameters
    ----------
    by_row
        Places of arguments that have a row for each token: of these a call with M tokens gets the first M.
    changed
        Places of arguments, also in `by_row`, that are results: the op writes into them.
    kind
        "same": bit-equal to the torch backend on the CPU. "close": within the bound of float64. "codes":
        codes and scales, half a step and that bound away from what `floats` computes.
    floats
        For float64: a function that takes the arguments; by default the torch backend's own.
    roundings
        Of the largest result that are allowed besides the error of plain float32.
    """

    op: str
    shape: str
    args: tuple[Any, ...]
    by_row: tuple[int, ...] = (0,)
    changed: tuple[int, ...] = ()
    kind: str = "close"
    floats: Callable[..., Any] | None = None
    roundings: int = 1

    def first(self, rows: int) -> tuple[Any, ...]:
        """Arguments of the first so many tokens."""
        return tuple(one[:rows] if place in self.by_row else one for place, one in enumerate(self.args))


def cases(op: str) -> list[Case]:
    """Everything that an op is checked on; nothing for an op without cases."""
    generator = torch.Generator().manual_seed(0)
    if op.startswith("linear_"):
        return list(_linears(op.removeprefix("linear_"), generator))
    make = _MAKERS.get(op)
    return [case for dtype in _dtypes(op) for case in make(op, dtype, generator)] if make else []


def _linears(precision: str, generator: torch.Generator) -> Iterator[Case]:
    op = f"linear_{precision}"
    for index, (k, n) in enumerate(SHAPES):
        weight = torch.randn(n, k, generator=generator) / math.sqrt(k)
        x = torch.randn(ROWS, k, generator=generator)
        bias, residual = torch.randn(n, generator=generator), torch.randn(ROWS, n, generator=generator)
        roundings = -(-k // _ROUNDED_TOGETHER)
        dtype = torch.float32 if index == 0 else torch.bfloat16
        # float64 rounds nothing: rounding is done before
        rounded = x if precision == "fp32" else x.bfloat16().to(dtype)
        if precision in ("fp32", "bf16"):
            dense = weight if precision == "fp32" else weight.bfloat16()
            args = (rounded, dense, bias, residual.to(rounded.dtype))
            yield Case(
                op,
                _named(k, n, rounded.dtype),
                args,
                (0, 3),
                (),
                "close",
                function("torch", "linear_fp32"),
                roundings,
            )
            continue
        kind, act = ("int4", precision[2:]) if precision.startswith("w4") else ("mxfp4", precision[5:])
        module = formats.get(kind)
        for group in (32,) if kind == "mxfp4" else GROUPS if index == 0 else (128,):
            codes, scales = module.quantize(weight) if kind == "mxfp4" else module.quantize(weight, group)
            packed = module.pack(codes, scales, group)
            sizes = (n, k, packed.group_size)
            name = f"{_named(k, n, dtype if act == 'a16' else torch.int8)} {kind} g{packed.group_size}"
            if act == "a16":
                args = (rounded, packed, bias, residual.to(dtype), *sizes)
                yield Case(op, name, args, (0, 3), roundings=roundings)
            else:
                taken = quantize_act(
                    x, bits=int(act[1:]), group_size=packed.group_size if act == "a4" else None
                )
                args = (taken.codes, taken.scales, packed, bias, residual, *sizes)
                yield Case(op, name, args, (0, 1, 4), kind="same")


def _named(k: int, n: int, dtype: torch.dtype) -> str:
    return f"{k}x{n} {str(dtype).removeprefix('torch.')}"


def _dtypes(op: str) -> Sequence[torch.dtype]:
    """What a kernel takes: logits and distributions are not rounded."""
    wide = ("argmax", "softmax", "draw", "draw_residual", "embedding")
    return (torch.float32,) if op in wide else (torch.float32, torch.bfloat16)


Maker = Callable[[str, torch.dtype, torch.Generator], Iterator[Case]]


def _random(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def _normalisations(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    for k in (256, 301):
        x, gain = _random(generator, dtype, ROWS, k), torch.rand(k, generator=generator) + 0.5
        name = _named(k, k, dtype)
        if op == "rmsnorm":
            yield Case(op, name, (x, gain, 1e-6), roundings=4)
        else:
            for bits, group in ((8, k), (4, 32)):
                yield _coded(op, name, (x, gain, 1e-6, bits, group, 1.0), _unquantised("rmsnorm", 3))


def _quantisations(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    for k in (256, 301):
        x = _random(generator, dtype, ROWS, k)
        for bits, group in ((8, k), (4, 32), (4, 128)):
            yield Case(op, f"{_named(k, k, dtype)} a{bits} g{group}", (x, bits, group, 1.0), kind="same")


def _gates(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    for k in (256, 301):
        x, name = _random(generator, dtype, ROWS, 2 * k), _named(2 * k, k, dtype)
        if op == "silu_mul":
            yield Case(op, name, (x,), roundings=4)
        else:
            yield _coded(op, name, (x, 8, k, 1.0), _unquantised("silu_mul", 1))


def _hadamards(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    # a power of two; one with a matrix; blocks within a row
    for k, block in ((256, 256), (448, 448), (320, 64)):
        base = hadamard_base(block)
        diagonal = torch.where(torch.rand(k, generator=generator) < 0.5, -1.0, 1.0)
        name = f"{_named(k, k, dtype)} block {block}"
        if op == "hadamard":
            if block == k:
                x = _random(generator, dtype, ROWS, k)
                for transpose in (False, True):
                    yield Case(op, name, (x, base, transpose, diagonal), roundings=8)
        elif op == "hadamard_quantize_act":
            x = _random(generator, dtype, ROWS, k)
            for bits, group in ((8, k), (4, 32)):
                yield _coded(op, name, (x, base, block, bits, group, 1.0), _rotated)
        else:
            x = _random(generator, dtype, ROWS, 2 * k)
            for given in (None, diagonal):
                yield _coded(op, name, (x, base, given, block, 8, k, 1.0), _gated_rotated)


def _rotary(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    heads, kv_heads, d, capacity = 6, 2, 64, 80
    positions = torch.randint(0, capacity, (ROWS,), generator=generator, dtype=torch.int32)
    inv_freq = 10000.0 ** -(torch.arange(0, d, 2).float() / d)
    name = f"{heads}/{kv_heads} x {d} {str(dtype).removeprefix('torch.')}"
    if op == "rope":
        yield Case(
            op,
            name,
            (_random(generator, dtype, ROWS, heads, d), positions, inv_freq, 1.0),
            (0, 1),
            roundings=64,
        )
        return
    rows = torch.arange(ROWS, dtype=torch.int32)
    caches = [_random(generator, torch.bfloat16, ROWS, kv_heads, capacity, d) for _ in range(2)]
    if op == "cache_write":
        k, v = (_random(generator, dtype, ROWS, kv_heads, d) for _ in range(2))
        yield Case(op, name, (*caches, k, v, rows, positions), tuple(range(6)), (0, 1), "same")
        return
    x = _random(generator, dtype, ROWS, (heads + 2 * kv_heads) * d)
    gains = [torch.rand(d, generator=generator) + 0.5 for _ in range(2)]
    for given in ((None, None, 0.0), (*gains, 1e-6)):
        args = (x, *caches, rows, positions, inv_freq, 1.0, *given)
        yield Case(op, name, args, tuple(range(5)), (1, 2), roundings=64)


def _attentions(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    for heads, kv_heads, d, window in ((8, 2, 128, -1), (6, 2, 72, 100)):
        capacity, each = 600, 4
        q = _random(generator, dtype, ROWS, heads, d)
        caches = [_random(generator, torch.bfloat16, ROWS // each, kv_heads, capacity, d) for _ in range(2)]
        rows = torch.arange(ROWS, dtype=torch.int32) // each
        first = torch.randint(0, capacity - each, (ROWS // each,), generator=generator, dtype=torch.int32)
        positions = first.repeat_interleave(each) + torch.arange(ROWS, dtype=torch.int32) % each
        name = f"{heads}/{kv_heads} x {d} {str(dtype).removeprefix('torch.')}" + (
            " window" if window > 0 else ""
        )
        yield Case(op, name, (q, *caches, rows, positions, d**-0.5, window), (0, 3, 4), roundings=16)


def _embeddings(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    ids = torch.randint(0, 50, (ROWS,), generator=generator)
    for rounded in (False, True):
        table = _random(generator, dtype, 50, 301)
        yield Case(op, "50x301", (table, ids, rounded, dtype), (1,), kind="same")


def _rescores(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    n, k = 5000, 256
    logits, x = (
        _random(generator, torch.float32, ROWS, n),
        _random(generator, torch.bfloat16, ROWS, k).to(dtype),
    )
    weight, bias = _random(generator, torch.bfloat16, n, k), _random(generator, torch.float32, n)
    yield Case(
        op, _named(k, n, dtype), (logits, x, weight, bias, 16), (0, 1), (0,), roundings=k // _ROUNDED_TOGETHER
    )


def _choices(op: str, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Case]:
    n = 5003
    x = _random(generator, dtype, ROWS, n)
    if op == "argmax":
        yield Case(op, f"{n}", (x,), kind="same")
    elif op == "softmax":
        yield Case(op, f"{n}", (x, 0.8), roundings=16)
    else:
        # whole numbers, whose sums are exact in any order
        p, q = ((torch.rand(ROWS, n, generator=generator) * 64).floor() for _ in range(2))
        uniforms = torch.rand(ROWS, dtype=torch.float64, generator=generator)
        rows = torch.arange(ROWS)
        if op == "draw":
            yield Case(op, f"{n}", (p, uniforms, None, rows), (0, 1, 3), kind="same")
        else:
            yield Case(op, f"{n}", (p, q, uniforms, None, None), (0, 1, 2), kind="same")


_MAKERS: dict[str, Maker] = {
    **dict.fromkeys(("rmsnorm", "rmsnorm_quantize_act"), _normalisations),
    "quantize_act": _quantisations,
    **dict.fromkeys(("silu_mul", "silu_mul_quantize_act"), _gates),
    **dict.fromkeys(("hadamard", "hadamard_quantize_act", "silu_mul_hadamard_quantize_act"), _hadamards),
    **dict.fromkeys(("rope", "cache_write", "rope_cache_write"), _rotary),
    "attention": _attentions,
    "embedding": _embeddings,
    "rescore": _rescores,
    **dict.fromkeys(("argmax", "softmax", "draw", "draw_residual"), _choices),
}
OPS = (*(f"linear_{name}" for name in LINEARS), *_MAKERS)


def _coded(op: str, name: str, args: tuple[Any, ...], floats: Callable[..., Tensor]) -> Case:
    bits, group = args[-3:-1]
    return Case(op, f"{name} a{bits} g{group}", args, kind="codes", floats=floats, roundings=8)


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
