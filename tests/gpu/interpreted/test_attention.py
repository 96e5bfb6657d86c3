"""Attention, interpreted: the reference, what is unseen, and tokens that do not depend on their company."""

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels.backends.triton import attention
from tests.gpu.interpreted.served import sequential_dots, served
from tests.kernels import test_attention as checks
from tests.kernels.cases import assert_within_budget, same_bits

# numpy warns of what floating point defines
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def mutate(monkeypatch, poisoned):
    # spans of a single block: contexts of a few blocks have several
    monkeypatch.setattr(attention, "SPAN", 64)
    yield from served(monkeypatch)


# heads of no power of two and features of none, groups that fill no tile, a window within a block and beyond
@pytest.mark.parametrize(
    ("rows", "heads", "group", "d", "window", "dtype"),
    [
        ([(1, 1)], 1, 1, 1, None, torch.float32),
        ([(150, 6), (64, 2), (65, 0)], 2, 3, 33, None, torch.float32),
        ([(100, 3), (130, 1)], 1, 4, 16, 5, torch.bfloat16),
        ([(40, 2), (140, 2)], 2, 1, 64, 70, torch.float32),
    ],
)
def test_attention(rows, heads, group, d, window, dtype):
    checks.check_attention(rows, heads, group, d, window, dtype, 0)


def test_float32_cut_into_parts(monkeypatch):
    # as on a GPU, but with float16 for bfloat16, which the interpreter cannot multiply
    monkeypatch.setattr(attention, "INTERPRETED", False)
    batch = checks.make_batch(0, [70, 40], [2, 3], 2, 2, 16, torch.float16)
    q, k_cache, v_cache, rows, positions = batch
    out = attention.attention(q, k_cache, v_cache, rows.int(), positions.int(), 0.25, -1)
    exact = checks.exact_attention(*batch, 0.25)
    assert_within_budget(out, exact, checks.plain(batch, 0.25, None))


@pytest.mark.parametrize("window", [None, 5])
def test_what_lies_beyond_does_not_matter(window):
    checks.check_poison([(66, 3), (20, 1)], window, torch.float32, 0)


@pytest.mark.parametrize("many", [1, 1000])
@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_what_only_a_neighbour_sees_does_not_matter(spoilt, many, monkeypatch):
    # with the spans of a program merged there, and each left for the merging kernel
    monkeypatch.setattr(attention, "MANY", many)
    # the last token's own key and value, in the tile of the two before it
    batch = checks.make_batch(0, [70], [3], 1, 2, 16, torch.float32)
    right = qk.attention(*batch, scale=0.25)
    batch.k_cache[:, :, 69, 3] = batch.v_cache[:, :, 69, 5] = spoilt
    out = qk.attention(*batch, scale=0.25)
    assert same_bits(out[:2], right[:2])
    assert not out[2, :, 5].isfinite().any()
    last = batch._replace(q=batch.q[2:], rows=batch.rows[2:], positions=batch.positions[2:])
    assert same_bits(qk.attention(*last, scale=0.25), out[2:])


def test_keys_outside_the_window_do_not_matter():
    checks.test_keys_outside_the_window_do_not_matter(None)


def test_large_scores():
    checks.test_large_scores(None)


# two programs for six spans, and room for eight tokens at a time, which cuts the second row's tile; one for
# four spans, or for the tiles of four tokens
@pytest.mark.parametrize(
    ("sizes", "window", "grids"),
    [
        ({"LANES": 2, "SCRATCH": 1}, None, [(8, 1, 2), (2, 1, 2)]),
        ({"MANY": 1}, 40, [(10, 1, 2)]),
        ({"MANY": 1, "LANES": 4, "PROGRAMS": 1, "SCRATCH": 1}, None, [(2, 1, 1), (1, 1, 1)]),
    ],
)
def test_lanes_and_passes(monkeypatch, sizes, window, grids):
    sequential_dots(monkeypatch)
    right, launch = attention._constants, attention.launch
    monkeypatch.setattr(attention, "_constants", lambda *a: _with_small_tiles(right(*a)))
    monkeypatch.setattr(attention, "SPAN", 16)
    batch = checks.make_batch(0, [70, 90], [3, 7], 1, 4, 16, torch.float32)
    whole = qk.attention(*batch, scale=0.25, window=window)
    seen = []

    def record(kernel, grid, arguments, *rest):
        seen.append(grid)
        # other addresses than multiples of 16 bytes are another compilation
        assert not any(one.storage_offset() % 8 for one in arguments if isinstance(one, torch.Tensor))
        launch(kernel, grid, arguments, *rest)

    monkeypatch.setattr(attention, "launch", record)
    for name, size in sizes.items():
        monkeypatch.setattr(attention, name, size)
    assert same_bits(qk.attention(*batch, scale=0.25, window=window), whole)
    assert seen[::2] == grids


@pytest.mark.parametrize("queries", [1, 4, 9, 16, 64])
def test_passes_are_whole_tiles_where_there_is_room(queries):
    for size in (1, 1000, 10**6, 10**7, 10**9):
        fitting = attention._fitting(queries, size)
        assert fitting % 8 == 0
        assert fitting >= queries
        assert fitting * size <= attention.SCRATCH or fitting < queries + 8
        if fitting >= 8 * queries:
            assert fitting % queries == 0


# 16 queries a tile: tiles of up to 4 tokens, and of 5 where 3 heads share a key head
@pytest.mark.parametrize(("group", "window"), [(4, None), (3, 70)])
def test_tokens_do_not_depend_on_their_company(rng, monkeypatch, group, window):
    check_company(rng, monkeypatch, group, window)


def check_company(rng, monkeypatch, group, window):
    sequential_dots(monkeypatch)
    right = attention._constants
    monkeypatch.setattr(attention, "_constants", lambda *a: _with_small_tiles(right(*a)))
    # the whole prompt's spans are merged in pairs where they are computed, those of a few tokens are not
    for name, size in {"SPAN": 16, "STRETCH": 2, "MANY": 20, "PROGRAMS": 20}.items():
        monkeypatch.setattr(attention, name, size)
    lengths = [72, 5]
    caches = [torch.randn(2, 1, 80, 16, generator=rng) for _ in range(2)]
    pairs = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    rows, positions = torch.tensor(pairs).unbind(1)
    q = torch.randn(len(pairs), group, 16, generator=rng)

    def attend(some):
        return qk.attention(q[some], *caches, rows[some], positions[some], scale=0.25, window=window)

    every = torch.arange(len(pairs))
    prefill = attend(every)
    alone = [torch.tensor([token]) for token in (0, 64, 76)]
    for some in (*alone, every[60:66], every[67:75], every[50:68].flip(0), every[::9]):
        assert same_bits(attend(some), prefill[some]), f"{len(some)} tokens"


def _with_small_tiles(constants):
    shared, tile = constants
    queries = 16 // (shared["Q_HEADS"] // tile["KV_HEADS"])
    return shared, tile | {"TILE": 16, "KEYS": 16, "QUERIES": queries, "AHEAD": 8}


def test_the_checks_catch_another_order_of_spans(rng, monkeypatch):
    right = attention.launch

    def one_after_the_other(kernel, grid, arguments, constants, warps):
        if "STRETCH" in constants and arguments[-1] == 1:
            constants = constants | {"STRETCH": 1}
        right(kernel, grid, arguments, constants, warps)

    monkeypatch.setattr(attention, "launch", one_after_the_other)
    with pytest.raises(AssertionError, match="tokens"):
        check_company(rng, monkeypatch, 4, None)


def _blocks_counted_from_the_longest_row(right, q, k_cache, v_cache, rows, positions, scale, window):
    # keys moved so that the longest row ends a block: which keys share a block depends on the batch
    shift = 15 - int(positions.max()) % 16
    caches = [torch.nn.functional.pad(cache, (0, 0, shift, 0)) for cache in (k_cache, v_cache)]
    return right(q, *caches, rows, positions + shift, scale, window)


def test_the_checks_catch_blocks_that_depend_on_the_batch(mutate, rng, monkeypatch):
    mutate("attention", _blocks_counted_from_the_longest_row)
    with pytest.raises(AssertionError, match="tokens"):
        check_company(rng, monkeypatch, 4, 50)


@pytest.mark.parametrize("wrong", [checks._off_by_one, checks._heads_interleaved, checks._wider_window])
def test_the_checks_catch(mutate, wrong):
    mutate("attention", wrong)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        checks.check_attention([(70, 2), (20, 1)], 2, 2, 16, 20, torch.float32, 0)
