"""Forward passes as programs give the bits of the same ops called one by one."""

import pytest
import torch

from qspec_decode import generate, load, model, replay, speculate
from qspec_decode.cache import KVCache, Spares
from qspec_kernels import isa, softmax, top2
from tests.kernels.cases import same_bits

pytestmark = pytest.mark.skipif(isa() == "torch", reason="there are no native kernels here")

PASSES = [
    # (tokens per row, first position, logits of the last token only)
    ((5, 3), 0, True),
    ((1, 1), 5, False),
    ((4, 2), 6, False),
    ((1, 1), 10, False),
    ((4, 2), 11, False),
    ((4, 2), 15, True),
    ((0, 1), 17, False),
]


def logits(loaded, precision, *, draft_head=False):
    """Of a few passes, growing and shrinking, over one cache; and the cache."""
    cache = loaded.new_cache(2, 40, precision)
    generator = torch.Generator().manual_seed(3)
    made = []
    for counts, start, last in PASSES:
        rows = torch.arange(2).repeat_interleave(torch.tensor(counts))
        positions = torch.cat([torch.arange(count) + start for count in counts])
        ids = torch.randint(loaded.config.vocab_size - 40, (len(rows),), generator=generator)
        at = torch.tensor(counts).cumsum(0) - 1 if last else None
        out = loaded.forward(ids, rows, positions, cache, precision, logits_at=at, draft_head=draft_head)
        made.append(out.clone())
    return made, [*cache.k, *cache.v], cache


@pytest.mark.parametrize("precision", ["fp32", "bf16", "mxfp4a16", "mxfp4a8", "w4a16", "w4a8", "w4a4"])
@pytest.mark.parametrize("rotate", [False, True])
def test_replayed_passes_are_bit_equal(monkeypatch, precision, rotate):
    loaded = load("demo", [precision], rotate=rotate and precision not in ("fp32", "bf16"))
    for draft_head in (False, True):
        replayed, filled, cache = logits(loaded, precision, draft_head=draft_head)
        assert cache.replay is not None
        monkeypatch.setattr(model, "MAX_TOKENS", 0)
        called, expected, _ = logits(loaded, precision, draft_head=draft_head)
        monkeypatch.undo()
        assert all(same_bits(a, b) for a, b in zip(replayed, called, strict=True))
        assert all(same_bits(a, b) for a, b in zip(filled, expected, strict=True))


def test_passes_of_one_shape_are_recorded_once(monkeypatch):
    loaded = load("demo", ["bf16"])
    recordings = []
    record = replay.Workspace.record
    monkeypatch.setattr(replay.Workspace, "record", lambda *a, **k: recordings.append(1) or record(*a, **k))
    logits(loaded, "bf16")
    assert len(recordings) == 5


def test_a_change_of_the_thread_count_is_obeyed(threads):
    loaded = load("demo", ["bf16"])
    cache = loaded.new_cache(1, 8, "bf16")
    zero = torch.zeros(1, dtype=torch.int64)
    for count in (1, 2, 1):
        torch.set_num_threads(count)
        loaded.forward(zero, zero, zero, cache, "bf16")
    assert len(cache.replay._steps) == 2


def test_old_programs_make_room(monkeypatch):
    monkeypatch.setattr(replay, "_MAX_PROGRAMS", 2)
    loaded = load("demo", ["bf16"])
    made, _, cache = logits(loaded, "bf16")
    assert len(cache.replay._steps) == 2
    assert all(out.isfinite().all() for out in made)


def choices(loaded, cache, counts=(1, 3, 1, 1, 3, 2)):
    """(logits, their most probable ids) of passes of so many tokens over the cache, copied after both."""
    generator = torch.Generator().manual_seed(4)
    for start, count in enumerate(counts):
        ids = torch.randint(loaded.config.vocab_size - 40, (count,), generator=generator)
        rows, positions = torch.zeros_like(ids), torch.arange(count) + start
        out = loaded.forward(ids, rows, positions, cache, "bf16")
        expected = out.clone()
        chosen, values = loaded.top2(out, cache)
        assert same_bits(out, expected)
        assert all(map(same_bits, (chosen, values), top2(expected)))
        yield out, chosen


def test_the_choice_of_tokens_follows_its_pass(monkeypatch):
    loaded = load("demo", ["bf16"])
    cache = loaded.new_cache(1, 16, "bf16")
    first = list(choices(loaded, cache))
    # one memory a shape: what was returned is good until the next call
    assert len({chosen.data_ptr() for _, chosen in first}) == 3
    called = []
    monkeypatch.setattr(model, "top2", lambda logits: called.append(logits) or top2(logits))
    list(choices(loaded, cache))
    assert len(called) == 3, "another function is another program"
    list(choices(loaded, cache))
    assert len(called) == 3


def test_a_choice_from_other_logits_than_the_last_ones_is_made_at_once():
    loaded = load("demo", ["bf16"])
    cache = loaded.new_cache(1, 16, "bf16")
    (out, _), *_ = choices(loaded, cache, (1, 1))
    other = out.flip(1)
    assert all(map(same_bits, loaded.top2(other, cache), top2(other)))
    assert all(map(same_bits, loaded.top2(out, loaded.new_cache(1, 16, "bf16")), top2(out)))


def test_what_follows_a_pass_is_not_written_over_its_result():
    loaded = load("demo", ["bf16"])
    cache = loaded.new_cache(1, 16, "bf16")
    (out, _), *_ = choices(loaded, cache, (1,))
    before = out.clone()
    # as large as the logits, whose memory is free for what comes after the pass
    assert same_bits(cache.replay.follow(lambda x: softmax(x), out), softmax(before))
    assert same_bits(out, before)


def test_a_program_that_made_room_takes_its_choice_with_it(monkeypatch):
    monkeypatch.setattr(replay, "_MAX_PROGRAMS", 1)
    loaded = load("demo", ["bf16"])
    assert len(list(choices(loaded, loaded.new_cache(1, 16, "bf16")))) == 6


def test_a_program_of_another_key_would_be_noticed(monkeypatch):
    loaded = load("demo", ["bf16", "mxfp4a8"])
    run = replay.Replay.run
    monkeypatch.setattr(replay.Replay, "run", lambda self, key, *rest: run(self, "same", *rest))
    cache = loaded.new_cache(1, 8, "bf16")
    zero = torch.zeros(1, dtype=torch.int64)
    first = loaded.forward(zero, zero, zero, cache, "bf16").clone()
    assert same_bits(first, loaded.forward(zero, zero, zero, cache, "mxfp4a8"))


@pytest.mark.parametrize("draft", [None, "mxfp4"])
def test_a_call_after_another_one_records_nothing_and_says_the_same(monkeypatch, draft):
    recordings = []
    record = replay.Workspace.record
    monkeypatch.setattr(replay.Workspace, "record", lambda *a, **k: recordings.append(1) or record(*a, **k))

    def said(loaded, prompt):
        options = {"max_new_tokens": 12, "eos_token_id": ()}
        if draft is None:
            return generate(loaded, [prompt], **options).token_ids
        return speculate(loaded, [prompt], draft=draft, **options).token_ids

    used = load("demo", ["bf16", "mxfp4a8"])
    prompt = list(range(40, 75))
    said(used, list(range(300, 340)))
    text = said(used, prompt)
    recordings.clear()
    assert said(used, prompt) == text
    assert not recordings
    # memory that held other texts says what memory that held none does
    assert said(load("demo", ["bf16", "mxfp4a8"]), prompt) == text


def test_memory_is_given_back_once_and_only_so_much_is_kept():
    spares = Spares(max_bytes=3000)

    def cache(capacity):
        return KVCache(1, 1, 1, capacity, 4, torch.float32, spares=spares)

    first = cache(64)
    place = first.k[0].data_ptr()
    first.give_back()
    assert spares.num_bytes == 2 * 64 * 4 * 4
    again, other = cache(64), cache(64)
    assert again.k[0].data_ptr() == place != other.k[0].data_ptr()
    # what was given back is another's now
    first.give_back()
    assert spares.num_bytes == 0
    again.give_back()
    # a smaller one takes it, a larger one does not
    smaller = cache(48)
    assert (smaller.k[0].data_ptr(), smaller.capacity) == (place, 64)
    smaller.give_back()
    assert cache(65).k[0].data_ptr() != place
    assert spares.num_bytes == 2 * 64 * 4 * 4
    cache(128).give_back()
    assert spares.num_bytes == 0


def test_spares_make_room_for_other_memory():
    spares = Spares(max_bytes=5000, max_bytes_beside=2500)

    def cache(batch):
        return KVCache(1, batch, 1, 64, 4, torch.float32, spares=spares)

    caches = [cache(1), cache(1)]
    for each in caches:
        each.give_back()
    assert spares.num_bytes == 2 * 2048
    # one like them takes its own, another one sends away all but what may stay beside it
    kept = cache(1)
    assert spares.num_bytes == 2048
    kept.give_back()
    assert spares.num_bytes == 2 * 2048
    cache(2)
    assert spares.num_bytes == 2048


def test_the_memory_of_programs_counts():
    loaded = load("demo", ["bf16"])
    made, caches, cache = logits(loaded, "bf16")
    cache.give_back()
    least = sum(tensor.nbytes for tensor in caches) + max(out.nbytes for out in made)
    assert loaded._spares.num_bytes >= least
