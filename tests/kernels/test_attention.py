"""`attention` and `cache_write` against the reference, on ragged batches over a poisoned cache."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import qspec_kernels as qk
from reference.attention import attention as exact_attention
from reference.cache_write import cache_write as exact_cache_write
from tests.kernels.cases import FLOATS, assert_within_budget, same_bits

pytestmark = pytest.mark.usefixtures("poisoned")

GARBAGE = 1e4


class Batch(NamedTuple):
    """A ragged batch: each cache row brings its last `fresh` tokens."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    rows: Tensor
    positions: Tensor


def make_batch(seed, lengths, fresh, heads, group, d, dtype, garbage=GARBAGE) -> Batch:
    """Row r holds lengths[r] keys; the tokens are its last fresh[r] positions; beyond is +-garbage."""
    rng = torch.Generator().manual_seed(seed)
    capacity = max(lengths) + 3
    shape = (len(lengths), heads, capacity, d)
    k_cache, v_cache = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    for row, length in enumerate(lengths):
        k_cache[row, :, length:] = garbage
        v_cache[row, :, length:] = -garbage
    pairs = [
        (row, position)
        for row, length in enumerate(lengths)
        for position in range(length - min(fresh[row], length), length)
    ]
    rows, positions = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    q = torch.randn(len(pairs), heads * group, d, generator=rng)
    return Batch(q, k_cache.to(dtype), v_cache.to(dtype), rows, positions)


def plain(batch: Batch, scale: float, window: int | None) -> Tensor:
    """The same maths in float32 [T, H, d], every sum made term by term.

    A matrix product would add in an order of the library's own, which may be right by chance.
    """
    group = batch.q.shape[1] // batch.k_cache.shape[1]
    keys = batch.k_cache[batch.rows].float().repeat_interleave(group, 1)
    values = batch.v_cache[batch.rows].float().repeat_interleave(group, 1)
    slots = torch.arange(keys.shape[2])
    seen = slots <= batch.positions[:, None]
    if window is not None:
        seen &= slots > batch.positions[:, None] - window
    scores = torch.zeros(keys.shape[:3])
    for i in range(keys.shape[3]):
        scores += batch.q[:, :, None, i].float() * keys[..., i]
    weights = (scores * scale).masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    out = torch.zeros(batch.q.shape)
    for slot in slots:
        out += weights[:, :, slot, None] * values[:, :, slot]
    return out


RAGGED = st.lists(st.tuples(st.integers(1, 150), st.integers(0, 6)), min_size=1, max_size=3).filter(
    lambda rows: any(fresh for _, fresh in rows)
)


@settings(max_examples=25)
@given(
    rows=RAGGED,
    heads=st.integers(1, 3),
    group=st.integers(1, 4),
    d=st.sampled_from([1, 7, 16, 33, 64]),
    window=st.sampled_from([None, 1, 5, 64, 100]),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 2**32),
)
def test_attention(backend, rows, heads, group, d, window, dtype, seed):
    check_attention(rows, heads, group, d, window, dtype, seed)


def check_attention(rows, heads, group, d, window, dtype, seed):
    lengths, fresh = zip(*rows, strict=True)
    batch = make_batch(seed, lengths, fresh, heads, group, d, dtype)
    out = qk.attention(*batch, scale=d**-0.5, window=window)
    exact = exact_attention(*batch, d**-0.5, window)
    assert_within_budget(out, exact, plain(batch, d**-0.5, window))
    narrow = qk.attention(batch.q.bfloat16(), *batch[1:], scale=d**-0.5, window=window)
    assert narrow.dtype == torch.bfloat16
    rounded = batch._replace(q=batch.q.bfloat16())
    low = plain(rounded, d**-0.5, window).bfloat16()
    assert_within_budget(narrow, exact_attention(*rounded, d**-0.5, window), low)


@settings(max_examples=25)
@given(
    rows=RAGGED, window=st.sampled_from([None, 5]), dtype=st.sampled_from(FLOATS), seed=st.integers(0, 2**32)
)
def test_what_lies_beyond_does_not_matter(backend, rows, window, dtype, seed):
    check_poison(rows, window, dtype, seed)


def check_poison(rows, window, dtype, seed):
    lengths, fresh = zip(*rows, strict=True)
    out = []
    for garbage in (GARBAGE, -GARBAGE, 0.0):
        batch = make_batch(seed, lengths, fresh, 2, 2, 24, dtype, garbage)
        out.append(qk.attention(*batch, scale=0.2, window=window))
    assert same_bits(out[0], out[1])
    assert same_bits(out[0], out[2])


def test_keys_outside_the_window_do_not_matter(backend):
    batch = make_batch(0, [150], [3], 1, 2, 16, torch.float32)
    out = qk.attention(*batch, scale=0.25, window=70)
    batch.k_cache[:, :, : 150 - 3 - 70 + 1] = GARBAGE
    batch.v_cache[:, :, : 150 - 3 - 70 + 1] = torch.nan
    assert same_bits(qk.attention(*batch, scale=0.25, window=70), out)


def test_large_scores(backend):
    # the largest score comes late, so that earlier sums have to be scaled down, here to nothing
    batch = make_batch(0, [130], [1], 1, 1, 16, torch.float32)
    batch.k_cache[:, :, 129] = batch.q[0, 0] * 50
    out = qk.attention(*batch, scale=1.0)
    torch.testing.assert_close(out[0, 0], batch.v_cache[0, 0, 129])


def test_float64():
    batch = make_batch(1, [70, 1, 129], [4, 1, 2], 2, 2, 24, torch.float64)
    batch = batch._replace(q=batch.q.double())
    for window in (None, 9):
        out = qk.attention(*batch, scale=0.2, window=window)
        torch.testing.assert_close(out, exact_attention(*batch, 0.2, window), rtol=1e-12, atol=1e-12)


def test_long_prompts_take_linear_memory(backend):
    # a score matrix for all tokens at once would be 9 MB per head
    tokens = 1500
    batch = make_batch(0, [tokens], [tokens], 1, 1, 8, torch.float32)
    out = qk.attention(*batch, scale=0.3)
    some = torch.tensor([0, 1, 63, 64, 700, tokens - 1])
    few = batch._replace(q=batch.q[some], rows=batch.rows[some], positions=batch.positions[some])
    assert_within_budget(out[some], exact_attention(*few, 0.3), plain(few, 0.3, None))


ROWS = [(130, 3), (64, 1), (65, 5)]


def _off_by_one(right, q, k_cache, v_cache, rows, positions, *rest):
    return right(q, k_cache, v_cache, rows, (positions - 1).clamp(min=0), *rest)


def _one_too_far(right, q, k_cache, v_cache, rows, positions, *rest):
    return right(q, k_cache, v_cache, rows, positions + 1, *rest)


def _heads_interleaved(right, q, *rest):
    return right(q.flip(1).contiguous(), *rest).flip(1)


def _wider_window(right, *arguments):
    return right(*arguments[:-1], arguments[-1] + 1)


def _rounded_queries(right, q, *rest):
    return right(q.bfloat16().float(), *rest)


@pytest.mark.parametrize(
    "wrong", [_off_by_one, _one_too_far, _heads_interleaved, _wider_window, _rounded_queries]
)
def test_attention_catches(mutate, wrong):
    mutate("attention", wrong)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check_attention(ROWS, 2, 2, 16, 20, torch.float32, 0)


def _masked_by_a_large_number(right, q, k_cache, v_cache, rows, positions, scale, window):
    # scores of hidden keys lowered by a constant that large garbage outweighs
    group = q.shape[1] // k_cache.shape[1]
    keys, values = (c[rows.long()].float().repeat_interleave(group, 1) for c in (k_cache, v_cache))
    scores = torch.einsum("thd,thcd->thc", q.float(), keys) * scale
    hidden = torch.arange(keys.shape[2]) > positions[:, None]
    return torch.einsum("thc,thcd->thd", (scores - 1e3 * hidden[:, None]).softmax(-1), values)


def test_poison_catches_a_soft_mask(mutate):
    mutate("attention", _masked_by_a_large_number)
    with pytest.raises(AssertionError):
        check_poison(ROWS, None, torch.float32, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_cache_write(backend, rng, dtype, index):
    check_cache_write(rng, dtype, index)


def check_cache_write(rng, dtype, index):
    k_cache = torch.randn(3, 2, 9, 5, generator=rng).to(dtype)
    v_cache = torch.randn(3, 2, 9, 5, generator=rng).to(dtype)
    rows, positions = torch.tensor([2, 0, 2, 2], dtype=index), torch.tensor([0, 8, 1, 7], dtype=index)
    for source in (torch.float32, torch.bfloat16):
        k, v = (torch.randn(4, 2, 5, generator=rng).to(source) for _ in range(2))
        expected = exact_cache_write(k_cache, v_cache, k, v, rows, positions)
        assert qk.cache_write(k_cache, v_cache, k, v, rows, positions) is None
        assert same_bits(k_cache, expected[0])
        assert same_bits(v_cache, expected[1])


def test_cache_write_catches_keys_and_values_exchanged(mutate, rng):
    mutate("cache_write", lambda right, k_cache, v_cache, k, v, *rest: right(k_cache, v_cache, v, k, *rest))
    with pytest.raises(AssertionError):
        check_cache_write(rng, torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": torch.tensor([10])}, "positions holds 10; expected 0..9: the capacity"),
        ({"positions": torch.tensor([-1])}, "positions holds -1; expected 0..9"),
        ({"rows": torch.tensor([2])}, "rows holds 2; expected 0..1: the rows"),
        ({"rows": torch.tensor([0.0])}, "rows is torch.float32; expected int32 or int64"),
        ({"rows": torch.tensor([0, 1])}, "rows has shape .2.; expected .1."),
        ({"q": torch.ones(1, 3, 8)}, "q has 3 heads of 8 features, the cache 2 of 8"),
        ({"q": torch.ones(1, 2, 7)}, "q has 2 heads of 7 features, the cache 2 of 8"),
        ({"v_cache": torch.ones(2, 2, 9, 8)}, "v_cache has shape .2, 2, 9, 8.; expected .2, 2, 10, 8."),
        ({"v_cache": torch.ones(2, 2, 10, 8).bfloat16()}, "expected two contiguous tensors of one dtype"),
        ({"q": torch.ones(4, 8)}, "q has shape .4, 8.; expected .tokens, q_heads, d."),
        (
            {"k_cache": torch.ones(2, 10, 8)},
            "k_cache has shape .2, 10, 8.; expected .rows, heads, capacity, d.",
        ),
        ({"window": 0}, "window is 0; expected at least 1"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_input(changes, message):
    arguments = {
        "q": torch.ones(1, 4, 8),
        "k_cache": torch.ones(2, 2, 10, 8),
        "v_cache": torch.ones(2, 2, 10, 8),
        "rows": torch.tensor([0]),
        "positions": torch.tensor([0]),
        "scale": 1.0,
    }
    with pytest.raises(qk.UsageError, match=message) as error:
        qk.attention(**(arguments | changes))
    assert error.value.hint
    if not changes.keys() & {"q", "window"}:
        del arguments["q"], arguments["scale"]
        with pytest.raises(qk.UsageError, match=message):
            qk.cache_write(**(arguments | changes), k=torch.ones(1, 2, 8), v=torch.ones(1, 2, 8))
