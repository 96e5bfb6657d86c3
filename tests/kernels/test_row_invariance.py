"""Every row of every op is the same, bit for bit, whatever rows share its call and how many threads run.

This is what makes speculation exact: a token's logits do not depend on whether it is decoded alone, verified
in a block, or part of a prompt.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import qspec_kernels as qk
from qspec_kernels import formats
from qspec_kernels.backends.torch import _linear, _matmul
from qspec_kernels.formats import PackedWeight
from tests.kernels.cases import quantized, same_bits, spread
from tests.kernels.rowwise import COUNTS, TOTAL, Rowwise, check_rows, numbers

pytestmark = pytest.mark.usefixtures("poisoned", "threads")

# Rows of x at most, K and N, and what they reach in the native kernels:
SHAPES = [
    (TOTAL, 40, 3),  # K below one block of any sum, padded; one packed tile, not full; no whole dense tile
    (TOTAL, 127, 17),  # an odd K; a tile and one row; dense tiles and a row over
    (TOTAL, 300, 33),  # several scale groups, the last one shorter; three packed tiles, taken one by one
    (65, 192, 172),  # MKL cuts this K in two for one thread and not for two, where it has the whole of it
    (TOTAL, 1024, 16),  # no padding of K; float32 weights cut in two (parts of 512), bfloat16 not yet
    # bfloat16 cut in three (1024 + 1024 + 52), float32 in five, each with an end that fills no vector; five
    # packed tiles: four together and one, for two threads two tasks; dense blocks of 16 rows and one of 6
    (65, 2100, 70),
]


def linears(rng: torch.Generator, k: int, n: int) -> dict[str, Rowwise]:
    """Every kind of linear with a [n, k] weight, as a function of x alone."""
    weight, bias = torch.randn(n, k, generator=rng), torch.randn(n, generator=rng)
    int4 = quantized("int4", weight, 64).packed
    made: dict[str, Rowwise] = {
        "fp32": lambda x: qk.linear(x, weight, bias),
        "bf16": lambda x: qk.linear(x, weight.bfloat16()),
        "bf16 of bf16": lambda x: qk.linear(x.bfloat16(), weight.bfloat16(), bias),
        "w4a16 of bf16": lambda x: qk.linear(x.bfloat16(), int4, bias),
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
    even, block, eight = k // 2 * 2, k // 4 * 4, k // 8 * 8
    return {
        "rmsnorm": lambda x: qk.rmsnorm(x, weight, 1e-6),
        "silu_mul": lambda x: qk.silu_mul(x[:, :even]),
        "hadamard": lambda x: qk.hadamard(x[:, :block], block=4),
        "quantize_act": lambda x: numbers(qk.quantize_act(x, bits=4, group_size=32)),
        "quantize_act of whole rows": lambda x: numbers(qk.quantize_act(x)),
        "rmsnorm_quantize_act": lambda x: numbers(qk.rmsnorm_quantize_act(x, weight, bits=4, group_size=32)),
        "silu_mul_quantize_act": lambda x: numbers(qk.silu_mul_quantize_act(x[:, :even])),
        "silu_mul_hadamard_quantize_act": lambda x: numbers(
            qk.silu_mul_hadamard_quantize_act(x[:, :eight], block=4)
        ),
    }


@pytest.mark.parametrize(("rows", "k", "n"), SHAPES)
def test_linears(backend, rng, rows, k, n):
    check_linears(rng, rows, k, n)


def check_linears(rng, rows, k, n):
    x = torch.randn(rows, k, generator=rng)
    wide = spread(x, rng)
    for name, op in linears(rng, k, n).items():
        # quantised, small numbers would be zeros
        check_rows(op, x if name.endswith(("a8", "a4")) else wide)


def test_linears_in_pieces(torch_backend, rng, monkeypatch):
    # the torch path widens a large weight piece by piece; here the pieces are so small that there are some
    for module in (_matmul, _linear):
        monkeypatch.setattr(module, "PIECE", 4096)
    check_linears(rng, 65, 127, 70)


@pytest.mark.parametrize("k", [40, 127, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_others(backend, rng, k, dtype):
    x = torch.randn(TOTAL, k, generator=rng).to(dtype)
    for op in others(rng, k).values():
        check_rows(op, x)


# blocks of a base matrix below and above one vector, a base matrix alone, butterflies alone
@pytest.mark.parametrize("width", [12, 40, 112, 192, 344, 1024])
def test_hadamard(backend, rng, width):
    x = torch.randn(TOTAL, width, generator=rng)
    check_rows(qk.hadamard, x)
    check_rows(lambda x: qk.hadamard(x.bfloat16(), transpose=True), x)
    check_rows(lambda x: numbers(qk.hadamard_quantize_act(x)), x)
    check_rows(lambda x: numbers(qk.hadamard_quantize_act(x, block=4, bits=4, group_size=32)), x)


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


@pytest.mark.parametrize(("k", "n"), [shape[1:] for shape in SHAPES[1:5]])
def test_float64(torch_backend, rng, k, n):
    x = torch.randn(65, k, dtype=torch.float64, generator=rng)
    for op in (linears(rng, k, n) | others(rng, k)).values():
        check_rows(op, x)


# head dimension, cache heads, query heads for each, window, length of each cache row. The native kernel takes
# up to 32 queries at a time: 32 tokens of one row, 10, 8, and of 40 query heads first 32 and then 8
ATTENTIONS = [
    (16, 1, 1, None, [300, 200, 13]),
    (33, 2, 3, 70, [150, 70, 5]),
    (64, 1, 4, None, [150, 70, 5]),
    (16, 1, 40, None, [70, 5]),
]


# decode: one token; verify: a block of a few; prefill: all tokens so far
@pytest.mark.parametrize(("d", "heads", "group", "window", "lengths"), ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention(backend, rng, d, heads, group, window, lengths, dtype):
    check_attention(rng, d, heads, group, dtype, window, lengths)


@pytest.mark.parametrize(("d", "heads", "group", "window", "lengths"), ATTENTIONS[1:3])
def test_attention_in_float64(torch_backend, rng, d, heads, group, window, lengths):
    check_attention(rng, d, heads, group, torch.float64, window, lengths)


def check_attention(rng, d, heads, group, dtype, window, lengths):
    shape = (len(lengths), heads, max(lengths) + 10, d)
    k_cache, v_cache = (torch.randn(shape, generator=rng).to(dtype) for _ in range(2))
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
    first, total = lengths[0], len(pairs)
    # around the borders of key blocks and of cache rows
    places = {0, 1, 63, 64, 65, 127, 128, first - 1, first, total - lengths[-1] - 1, total - lengths[-1]}
    decode = torch.tensor(sorted(place for place in places | {total - 1} if place < total))
    blocks = [*decode[:, None], *(every[-count:] for count in COUNTS if count <= total)]
    blocks += [every[60:66], every[first - 5 : first + 6], every.flip(0), every[::7]]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for tokens in blocks:
            assert same_bits(attend(tokens), prefill[tokens]), f"{len(tokens)} tokens, {threads} threads"


# the angles of a head too wide for the native kernel's stack lie elsewhere
@pytest.mark.parametrize(("tokens", "heads", "d"), [(TOTAL, 3, 24), (64, 1, 1040)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rope(backend, rng, tokens, heads, d, dtype):
    x = torch.randn(tokens, heads, d, generator=rng).to(dtype)
    positions, inv_freq = torch.randint(0, 9999, (tokens,), generator=rng), torch.rand(d // 2, generator=rng)
    whole = qk.rope(x, positions, inv_freq)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in [count for count in COUNTS if count <= tokens]:
            out = qk.rope(x[-count:], positions[-count:], inv_freq)
            assert same_bits(out, whole[-count:])


def test_catches_a_plain_linear(mutate, rng):
    mutate("linear_fp32", lambda right, x, weight, bias, residual: F.linear(x, weight, bias))
    with pytest.raises(AssertionError, match="threads"):
        check_rows(linears(rng, 300, 33)["fp32"], torch.randn(TOTAL, 300, generator=rng))


def _groups_backwards(right, x, data, scales, bias, residual, n, k, group_size):
    # a group's sum, then its scale, as kernels do it; in calls with two rows the sum begins at the other end
    codes, _ = formats.get("int4").unpack(PackedWeight(data, scales, "int4", (n, k), group_size))
    rounded, weight, out = x.bfloat16().float(), codes.float(), torch.zeros(len(x), n)
    for group, start in enumerate(range(0, k, group_size)):
        features = list(range(start, min(start + group_size, k)))
        sums = torch.zeros_like(out)
        for feature in reversed(features) if len(x) == 2 else features:
            sums += rounded[:, feature, None] * weight[:, feature]
        out += sums * scales[:, group].float()
    return out


def test_catches_another_order_inside_groups(mutate, rng):
    mutate("linear_w4a16", _groups_backwards)
    x, op = torch.randn(65, 300, generator=rng), linears(rng, 300, 33)["int4 32 a16"]
    check_rows(op, x)  # numbers of one magnitude do not show it
    with pytest.raises(AssertionError, match="1 threads: rows of a call with 2"):
        check_rows(op, spread(x, rng))


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
        check_attention(rng, 64, 1, 4, torch.float32, None, [150, 70, 5])
