"""As test_row_invariance.py, for ops whose rows bring more than features: ids, slots, logits, a residual.

What a row brings is made from its own values, so that it stays the row's wherever the row stands.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import qspec_kernels as qk
from tests.kernels.cases import quantized
from tests.kernels.rowwise import TOTAL, Rowwise, check_rows

pytestmark = pytest.mark.usefixtures("poisoned", "threads")

# rows at most, and logits: one piece; two pieces and a short third one
VOCABULARIES = [(TOTAL, 100), (17, 2 * 2048 + 5)]


def number_of(x: Tensor) -> Tensor:
    """A number in [0, 1) for each row, float64."""
    return (x[:, 0].double().abs() * 1000) % 1


def index_of(x: Tensor, stop: int) -> Tensor:
    """An index in 0..stop-1 for each row."""
    return (number_of(x) * stop).long()


def residuals(rng: torch.Generator, k: int, n: int) -> dict[str, Rowwise]:
    """Linears of x, whose first n features are added to the result."""
    weight, bias = torch.randn(n, k, generator=rng), torch.randn(n, generator=rng)
    packed = quantized("int4", weight, 64).packed
    return {
        "fp32": lambda x: qk.linear(x, weight, bias, residual=x[:, :n]),
        "bf16": lambda x: qk.linear(x, weight.bfloat16(), residual=x[:, :n]),
        "w4a16 of bf16": lambda x: qk.linear(x.bfloat16(), packed, residual=x[:, :n].bfloat16()),
        "w4a8": lambda x: qk.linear(x, packed, bias, act="a8", residual=x[:, :n]),
    }


@pytest.mark.parametrize("kind", ["fp32", "bf16", "w4a16 of bf16", "w4a8"])
def test_residual_of_a_linear(backend, rng, kind):
    check_rows(residuals(rng, 127, 17)[kind], torch.randn(TOTAL, 127, generator=rng))


def embeddings(rng: torch.Generator, width: int) -> dict[str, Rowwise]:
    """Functions of x alone, whose rows choose an entry each."""
    table = torch.randn(50, width, generator=rng)
    return {
        "fp32": lambda x: qk.embedding(table, index_of(x, 50)),
        "rounded": lambda x: qk.embedding(table, index_of(x, 50), rounded=True),
        "bf16": lambda x: qk.embedding(table.bfloat16(), index_of(x, 50)),
    }


# a task of the native kernel is a few rows, or many
@pytest.mark.parametrize(("rows", "width"), [(TOTAL, 40), (17, 2100)])
def test_embedding(backend, rng, rows, width):
    for op in embeddings(rng, width).values():
        check_rows(op, torch.randn(rows, 1, generator=rng))


HEADS, CAPACITY = 2, 3
# of the tokens, of the cache, and the width of a head
CACHES = [(torch.float32, torch.bfloat16, 80), (torch.bfloat16, torch.float32, 6)]


def cached(
    x: Tensor,
    d: int,
    cache_dtype: torch.dtype,
    write: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor | None],
) -> Tensor:
    """Every token into a cache row of its own, at a position of its own: what is returned and found there."""
    keys, values = (torch.full((len(x), HEADS, CAPACITY, d), torch.nan).to(cache_dtype) for _ in range(2))
    rows, positions = torch.arange(len(x)).flip(0), index_of(x, CAPACITY)
    returned = write(keys, values, rows, positions)
    found = [cache[rows, :, positions].flatten(1).float() for cache in (keys, values)]
    queries = [] if returned is None else [returned.flatten(1).float()]
    return torch.cat([*queries, *found], 1)


def check_cache_write(rng, dtype, cache_dtype, d):
    def op(x: Tensor) -> Tensor:
        def write(keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor) -> None:
            k, v = x.view(len(x), 2 * HEADS, d).chunk(2, 1)
            qk.cache_write(keys, values, k, v, rows, positions)

        return cached(x, d, cache_dtype, write)

    check_rows(op, torch.randn(TOTAL, 2 * HEADS * d, generator=rng).to(dtype))


@pytest.mark.parametrize(("dtype", "cache_dtype", "d"), CACHES, ids=str)
def test_cache_write(backend, rng, dtype, cache_dtype, d):
    check_cache_write(rng, dtype, cache_dtype, d)


def check_rope_cache_write(rng, dtype, cache_dtype, d):
    # angles of far positions, though the cache is short
    rotary = qk.RotaryEmbedding(torch.rand(d // 2, generator=rng) * 1000, 1.25)
    norm = qk.HeadNorm(torch.rand(d, generator=rng), torch.rand(d, generator=rng), 1e-5)

    def op(x: Tensor) -> Tensor:
        def write(keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
            return qk.rope_cache_write(x, keys, values, rows, positions, rotary, norm)

        return cached(x, d, cache_dtype, write)

    check_rows(op, torch.randn(TOTAL, (3 + 2 * HEADS) * d, generator=rng).to(dtype))


@pytest.mark.parametrize(("dtype", "cache_dtype", "d"), CACHES, ids=str)
def test_rope_cache_write(backend, rng, dtype, cache_dtype, d):
    check_rope_cache_write(rng, dtype, cache_dtype, d)


def check_rescore(rng, rows, k, n, count, dtype):
    weight = torch.randn(n, k, generator=rng).bfloat16()
    bias = torch.randn(n, generator=rng)

    def op(x: Tensor) -> Tensor:
        logits = x[:, k:].clone(memory_format=torch.contiguous_format)
        qk.rescore(logits, x[:, :k].to(dtype), weight, bias, count=count)
        return logits

    check_rows(op, torch.randn(rows, k + n, generator=rng))


@pytest.mark.parametrize(
    ("rows", "k", "n", "count", "dtype"),
    [(TOTAL, 40, 333, 32, torch.float32), (17, 1030, 70, 5, torch.bfloat16)],
    ids=str,
)
def test_rescore(backend, rng, rows, k, n, count, dtype):
    # the torch path takes row by row, each in a call of its own
    check_rescore(rng, 17 if backend == "torch" else rows, k, n, count, dtype)


def choices() -> dict[str, Rowwise]:
    """From a row of logits to what is chosen from it, as functions of the logits alone."""

    def turned(x: Tensor) -> Tensor:
        return torch.arange(len(x)).flip(0)

    return {
        "argmax": qk.argmax,
        "top2": lambda x: qk.top2(x)[1],
        "softmax": lambda x: qk.softmax(x, 0.7),
        "draw": lambda x: qk.draw(
            x.abs().flip(0), number_of(x), rows=turned(x), without=index_of(x, x.shape[1])
        ),
        "draw_residual": lambda x: qk.draw_residual(
            x.abs().flip(0), x.roll(1, 1).abs(), number_of(x), p_rows=turned(x), q_rows=turned(x).flip(0)
        ),
    }


@pytest.mark.parametrize(("rows", "n"), VOCABULARIES)
@pytest.mark.parametrize("choice", choices())
def test_choices(backend, rng, rows, n, choice):
    check_rows(choices()[choice], torch.randn(rows, n, generator=rng))


def _slots_of_the_whole_call(right, qkv, k_cache, v_cache, rows, positions, *rest):
    return right(qkv, k_cache, v_cache, rows, positions - positions.min(), *rest)


def _first_of_the_batch(right, logits, x, weight, bias, count):
    # in calls of many rows fewer logits
    return right(logits, x, weight, bias, count if len(x) < 64 else count - 1)


def _highest_of_the_batch(right, x, temperature):
    return right(x - x.max(), temperature)


def _weights_of_the_batch(right, weights, uniforms, rows, without):
    return right(weights + weights.mean(), uniforms, rows, without)


@pytest.mark.parametrize(
    ("op", "wrong", "check"),
    [
        ("linear_fp32", lambda right, x, weight, bias, residual: right(x, weight, bias, residual.roll(1, 0)),
         lambda rng: check_rows(residuals(rng, 127, 17)["fp32"], torch.randn(65, 127, generator=rng))),
        ("embedding", lambda right, table, ids, *rest: right(table, ids.sort().values, *rest),
         lambda rng: check_rows(embeddings(rng, 40)["fp32"], torch.randn(TOTAL, 1, generator=rng))),
        ("rope_cache_write", _slots_of_the_whole_call,
         lambda rng: check_rope_cache_write(rng, torch.float32, torch.float32, 6)),
        ("cache_write", lambda right, k_cache, v_cache, k, v, rows, positions: right(
            k_cache, v_cache, k / k.abs().max(), v, rows, positions),
         lambda rng: check_cache_write(rng, torch.float32, torch.float32, 6)),
        ("rescore", _first_of_the_batch, lambda rng: check_rescore(rng, 65, 40, 333, 32, torch.float32)),
        ("softmax", _highest_of_the_batch,
         lambda rng: check_rows(choices()["softmax"], torch.randn(TOTAL, 100, generator=rng))),
        ("draw", _weights_of_the_batch,
         lambda rng: check_rows(choices()["draw"], torch.randn(TOTAL, 100, generator=rng))),
    ],
)  # fmt: skip
def test_catches(mutate, rng, op, wrong, check):
    mutate(op, wrong)
    with pytest.raises(AssertionError, match="threads"):
        check(rng)
