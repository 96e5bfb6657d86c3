"""Every row of every op is the same, bit for bit, whatever rows share its call and how many threads run.

This is what makes speculation exact: a token's logits do not depend on whether it is decoded alone, verified
in a block, or part of a prompt.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import qspec_kernels as qk
from tests.kernels.cases import quantized, same_bits

pytestmark = pytest.mark.usefixtures("poisoned", "threads")

TOTAL = 513
COUNTS = [1, 2, 3, 5, 8, 17, 64, 513]

# K of several shapes: below one block of any sum, odd, several blocks; N below and above a tile, and odd
SHAPES = [(40, 3), (127, 17), (300, 33), (1024, 16)]

Rowwise = Callable[[Tensor], Tensor]


def linears(rng: torch.Generator, k: int, n: int) -> dict[str, Rowwise]:
    """Every kind of linear with a [n, k] weight, as a function of x alone."""
    weight, bias = torch.randn(n, k, generator=rng), torch.randn(n, generator=rng)
    made: dict[str, Rowwise] = {
        "fp32": lambda x: qk.linear(x, weight, bias),
        "bf16": lambda x: qk.linear(x, weight.bfloat16()),
        "bf16 of bf16": lambda x: qk.linear(x.bfloat16(), weight.bfloat16(), bias),
    }
    for kind, group, act in [
        ("int4", 32, "a16"),
        ("int4", 128, "a16"),
        ("int4", -1, "a16"),
        ("int4", 32, "a4"),
        ("int4", 128, "a8"),
        ("mxfp4", 32, "a16"),
        ("mxfp4", 32, "a8"),
    ]:
        packed = quantized(kind, weight, group).packed
        made[f"{kind} {group} {act}"] = lambda x, packed=packed, act=act: qk.linear(x, packed, act=act)
    return made


def others(rng: torch.Generator, k: int) -> dict[str, Rowwise]:
    """The ops that keep the width, as functions of x [M, k]; widths are made ones that each op takes."""
    weight = torch.rand(k, generator=rng)
    even, block = k // 2 * 2, k // 4 * 4
    return {
        "rmsnorm": lambda x: qk.rmsnorm(x, weight, 1e-6),
        "silu_mul": lambda x: qk.silu_mul(x[:, :even]),
        "hadamard": lambda x: qk.hadamard(x[:, :block], block=4),
        "quantize_act": lambda x: qk.quantize_act(x, bits=4, group_size=32).scales,
        "codes": lambda x: qk.quantize_act(x).codes,
        "rmsnorm_quantize_act": lambda x: qk.rmsnorm_quantize_act(x, weight, bits=4, group_size=32).scales,
        "silu_mul_quantize_act": lambda x: qk.silu_mul_quantize_act(x[:, :even]).codes,
    }


def check_rows(op: Rowwise, x: Tensor) -> None:
    """Rows computed one call each are those of any larger call, at any place, beside any neighbours."""
    torch.set_num_threads(1)
    whole = op(x)
    for row in (0, 1, 7, 8, 100, 448, 511, 512):
        assert same_bits(op(x[row : row + 1]), whole[row : row + 1]), f"1 threads: row {row} alone"
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:65]
    neighbours = x[some]
    neighbours[1::2] *= 1e4
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in COUNTS:
            # the last rows, so that their places differ from those they have in the whole
            assert same_bits(op(x[-count:]), whole[-count:]), (
                f"{threads} threads: rows of a call with {count}"
            )
        assert same_bits(op(x[some]), whole[some]), f"{threads} threads: rows in another order"
        assert same_bits(op(neighbours)[::2], whole[some[::2]]), (
            f"{threads} threads: rows with other neighbours"
        )


@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_linears(backend, rng, k, n):
    x = torch.randn(TOTAL, k, generator=rng)
    for op in linears(rng, k, n).values():
        check_rows(op, x)


@pytest.mark.parametrize("k", [40, 127, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_others(backend, rng, k, dtype):
    x = torch.randn(TOTAL, k, generator=rng).to(dtype)
    for op in others(rng, k).values():
        check_rows(op, x)


@pytest.mark.parametrize("width", [12, 40, 112, 344, 1024])
def test_hadamard(backend, rng, width):
    check_rows(qk.hadamard, torch.randn(TOTAL, width, generator=rng))
    check_rows(lambda x: qk.hadamard_quantize_act(x).codes, torch.randn(TOTAL, width, generator=rng))


def test_a_single_long_row(backend, rng):
    # one row so long that a sum over it alone would be worth sharing out among threads
    x = torch.randn(TOTAL, 40_000, generator=rng)[:20]
    weight = torch.ones(40_000)
    torch.set_num_threads(1)
    alone = qk.rmsnorm(x[:1], weight)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert same_bits(qk.rmsnorm(x[:1], weight), alone)
        assert same_bits(qk.rmsnorm(x, weight)[:1], alone)


def test_float64(torch_backend, rng):
    for k, n in SHAPES[1:]:
        x = torch.randn(TOTAL, k, dtype=torch.float64, generator=rng)
        for op in (linears(rng, k, n) | others(rng, k)).values():
            check_rows(op, x)


ATTENTIONS = [(16, 1, 1, None), (33, 2, 3, 70), (64, 1, 4, None)]


# decode: one token; verify: a block of a few; prefill: all tokens so far
@pytest.mark.parametrize(("d", "heads", "group", "window"), ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention(backend, rng, d, heads, group, window, dtype):
    check_attention(rng, d, heads, group, dtype, window)


def test_attention_in_float64(torch_backend, rng):
    for d, heads, group, window in ATTENTIONS:
        check_attention(rng, d, heads, group, torch.float64, window)


def check_attention(rng, d, heads, group, dtype, window):
    lengths = [150, 70, 5]
    k_cache, v_cache = (torch.randn(3, heads, 160, d, generator=rng).to(dtype) for _ in range(2))
    pairs = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    rows, positions = torch.tensor(pairs).unbind(1)
    q = torch.randn(len(pairs), heads * group, d, generator=rng)
    q = q.double() if dtype == torch.float64 else q

    def attend(tokens: Tensor) -> Tensor:
        return qk.attention(
            q[tokens], k_cache, v_cache, rows[tokens], positions[tokens], scale=d**-0.5, window=window
        )

    every = torch.arange(len(pairs))
    torch.set_num_threads(1)
    prefill = attend(every)
    decode = torch.tensor([0, 1, 63, 64, 65, 127, 128, 149, 150, 219, 220, 224])
    blocks = [*decode[:, None], every[60:66], every[145:156], every.flip(0), every[::7]]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for tokens in blocks:
            assert same_bits(attend(tokens), prefill[tokens]), f"{len(tokens)} tokens, {threads} threads"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rope(backend, rng, dtype):
    x = torch.randn(TOTAL, 3, 24, generator=rng).to(dtype)
    positions, inv_freq = torch.randint(0, 9999, (TOTAL,), generator=rng), torch.rand(12, generator=rng)
    whole = qk.rope(x, positions, inv_freq)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in COUNTS:
            out = qk.rope(x[-count:], positions[-count:], inv_freq)
            assert same_bits(out, whole[-count:])


def test_catches_a_plain_linear(mutate, rng):
    mutate("linear_fp32", lambda right, *arguments: F.linear(*arguments))
    with pytest.raises(AssertionError, match="threads"):
        check_rows(linears(rng, 300, 33)["fp32"], torch.randn(TOTAL, 300, generator=rng))


def test_catches_one_scale_for_all_rows(mutate, rng):
    def wrong(right, x, bits, group_size, clip):
        codes, scales = right(x.reshape(1, -1), bits, x.numel(), clip)
        return codes.view(x.shape), scales.expand(len(x), -(-x.shape[1] // group_size)).contiguous()

    mutate("quantize_act", wrong)
    with pytest.raises(AssertionError, match="threads"):
        check_rows(others(rng, 127)["quantize_act"], torch.randn(TOTAL, 127, generator=rng))


def _blocks_counted_from_the_longest_row(right, q, k_cache, v_cache, rows, positions, *rest):
    # keys moved so that the longest row ends a block: which keys share a block depends on the batch
    shift = 63 - int(positions.max()) % 64
    caches = [F.pad(cache, (0, 0, shift, 0)) for cache in (k_cache, v_cache)]
    for cache in caches:
        cache[:, :, :shift] = 0
    window = rest[1] if rest[1] > 0 else 10_000
    if window == 10_000:
        # the moved keys must not see the filling: a window as long as each token's own history
        return torch.cat(
            [
                right(q[t : t + 1], *caches, rows[t : t + 1], positions[t : t + 1] + shift, rest[0], p + 1)
                for t, p in enumerate(positions.tolist())
            ]
        )
    return right(q, *caches, rows, positions + shift, rest[0], window)


def test_catches_key_blocks_that_depend_on_the_batch(mutate, rng):
    mutate("attention", _blocks_counted_from_the_longest_row)
    with pytest.raises(AssertionError, match="threads"):
        check_attention(rng, 64, 1, 4, torch.float32, None)
