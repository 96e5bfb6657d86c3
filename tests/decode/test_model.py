"""One model, many ways to call it: every row is the same bits however its tokens are grouped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qspec_decode.cache import KVCache
from qspec_decode.load import load
from qspec_decode.model import Transformer
from qspec_kernels import UsageError

Family = Callable[[str], tuple[Path, Any]]
PRECISIONS = ("fp32", "bf16", "w4a16", "w4a8", "w4a4", "mxfp4a16", "mxfp4a8")
LENGTHS = (1, 67, 9, 18, 3)


@pytest.fixture(scope="module")
def model(family: Family) -> Transformer:
    return load(family("qwen3")[0], PRECISIONS, group_size=32)


@pytest.fixture(scope="module")
def rotated(family: Family) -> Transformer:
    return load(family("qwen2-window")[0], PRECISIONS, group_size=32, rotate=PRECISIONS)


@pytest.fixture(scope="module")
def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 211, (length,), generator=generator) for length in LENGTHS]


def poisoned_cache(model: Transformer, batch: int, precision: str) -> KVCache:
    """What lies behind a row's tokens must not matter."""
    cache = model.new_cache(batch, 80, precision)
    for tensor in (*cache.k, *cache.v):
        tensor.fill_(1e4)
    return cache


def alone(model: Transformer, ids: Tensor, precision: str) -> tuple[Tensor, KVCache]:
    cache = poisoned_cache(model, 1, precision)
    positions = torch.arange(len(ids))
    return model.forward(ids, torch.zeros_like(ids), positions, cache, precision), cache


def assert_same_cache(found: KVCache, row: int, expected: KVCache, length: int) -> None:
    for mine, theirs in zip((*found.k, *found.v), (*expected.k, *expected.v), strict=True):
        assert torch.equal(mine[row, :, :length], theirs[0, :, :length])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("which", ["model", "rotated"])
def test_rows_are_the_same_bits_alone_and_in_a_ragged_batch(
    request: pytest.FixtureRequest, which: str, precision: str, sequences: list[Tensor]
) -> None:
    model = request.getfixturevalue(which)
    cache = poisoned_cache(model, len(sequences), precision)
    rows = torch.cat([torch.full_like(ids, row) for row, ids in enumerate(sequences)])
    positions = torch.cat([torch.arange(len(ids)) for ids in sequences])
    together = model.forward(torch.cat(sequences), rows, positions, cache, precision)
    for row, (ids, found) in enumerate(zip(sequences, together.split(LENGTHS), strict=True)):
        expected, one = alone(model, ids, precision)
        assert torch.equal(found, expected)
        assert_same_cache(cache, row, one, len(ids))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("which", ["model", "rotated"])
@pytest.mark.parametrize("blocks", [(1,), (5, 3, 8), (40, 1, 1, 9)], ids=["decode", "verify", "mixed"])
def test_blocks_of_any_size_give_the_bits_of_one_prefill(
    request: pytest.FixtureRequest,
    which: str,
    precision: str,
    blocks: tuple[int, ...],
    sequences: list[Tensor],
) -> None:
    model, ids = request.getfixturevalue(which), sequences[1]
    expected, clean = alone(model, ids, precision)
    cache, start, index = poisoned_cache(model, 1, precision), 0, 0
    while start < len(ids):
        part = ids[start : start + blocks[index % len(blocks)]]
        positions = torch.arange(start, start + len(part))
        found = model.forward(part, torch.zeros_like(part), positions, cache, precision)
        assert torch.equal(found, expected[start : start + len(part)])
        start, index = start + len(part), index + 1
    assert_same_cache(cache, 0, clean, len(ids))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_threads_give_the_bits_of_one(
    rotated: Transformer, precision: str, sequences: list[Tensor]
) -> None:
    expected, clean = alone(rotated, sequences[1], precision)
    torch.set_num_threads(2)
    found, cache = alone(rotated, sequences[1], precision)
    assert torch.equal(found, expected)
    assert_same_cache(cache, 0, clean, len(sequences[1]))


def test_a_verify_overwrites_every_trace_of_a_draft(model: Transformer, sequences: list[Tensor]) -> None:
    ids = sequences[3]
    expected, clean = alone(model, ids, "bf16")
    cache = poisoned_cache(model, 1, "bf16")
    rows, positions = torch.zeros_like(ids), torch.arange(len(ids))
    model.forward(ids[:10], rows[:10], positions[:10], cache, "bf16")
    model.forward(ids[10:].flip(0), rows[10:], positions[10:], cache, "mxfp4a8", draft_head=True)
    found = model.forward(ids[10:], rows[10:], positions[10:], cache, "bf16")
    assert torch.equal(found, expected[10:])
    assert_same_cache(cache, 0, clean, len(ids))


def test_logits_are_computed_where_they_are_wanted(model: Transformer, sequences: list[Tensor]) -> None:
    ids = sequences[2]
    expected, _ = alone(model, ids, "w4a16")
    wanted = torch.tensor([8, 0, 3])
    found = model.forward(
        ids,
        torch.zeros_like(ids),
        torch.arange(len(ids)),
        poisoned_cache(model, 1, "w4a16"),
        "w4a16",
        logits_at=wanted,
    )
    assert torch.equal(found, expected[wanted])


def test_only_drafts_use_the_narrow_head(model: Transformer, sequences: list[Tensor]) -> None:
    ids = sequences[2]
    rows, positions = torch.zeros_like(ids), torch.arange(len(ids))

    def logits(precision: str, draft_head: bool) -> Tensor:
        cache = poisoned_cache(model, 1, precision)
        return model.forward(ids, rows, positions, cache, precision, draft_head=draft_head)

    assert not torch.equal(logits("mxfp4a8", True), logits("mxfp4a8", False))
    assert torch.equal(logits("w4a8", True), logits("w4a8", False))
    assert torch.equal(logits("bf16", True), logits("bf16", False))


def test_caches_have_the_dtype_of_the_precision(model: Transformer, family: Family) -> None:
    assert model.new_cache(2, 16, "fp32").k[0].dtype == torch.float32
    assert model.new_cache(2, 16, "mxfp4").k[0].dtype == torch.bfloat16
    assert model.new_cache(2, 16, "bf16").v[1].shape == (2, 2, 16, 24)
    wide = load(family("qwen3")[0], ("fp32", "w4a8"), dtype=torch.float64)
    cache = wide.new_cache(1, 16, "w4a8")
    assert cache.k[0].dtype == torch.float64
    ids = torch.tensor([1, 2, 3])
    assert wide.forward(ids, ids * 0, torch.arange(3), cache, "w4a8").dtype == torch.float64


def test_an_unloaded_precision_is_refused(family: Family) -> None:
    model = load(family("llama")[0], "bf16")
    ids = torch.tensor([1])
    with pytest.raises(UsageError, match=r"without precision 'w4a8', it has bf16"):
        model.forward(ids, ids * 0, ids * 0, model.new_cache(1, 4, "bf16"), "w4a8")
    with pytest.raises(UsageError, match=r"unknown precision 'int3'"):
        model.forward(ids, ids * 0, ids * 0, model.new_cache(1, 4, "bf16"), "int3")


def test_padding_ids_cannot_be_drawn(family: Family, tmp_path: Path) -> None:
    import json
    import shutil

    directory = tmp_path / "padded"
    shutil.copytree(family("llama")[0], directory)
    plain, _ = alone(load(directory, "fp32"), torch.tensor([5, 6]), "fp32")
    vocab = {str(index): index for index in range(200)}
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    model = load(directory, "fp32")
    masked, _ = alone(model, torch.tensor([5, 6]), "fp32")
    assert model.vocab_size == 211
    assert torch.equal(masked[:, :200], plain[:, :200])
    assert torch.isneginf(masked[:, 200:]).all()


@pytest.mark.parametrize("most", [0, 128])
def test_numbers_give_the_bits_of_tensors(
    model: Transformer, sequences: list[Tensor], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("qspec_decode.model.MAX_TOKENS", most)
    ids = sequences[2]
    expected, clean = alone(model, ids, "bf16")
    cache, n = poisoned_cache(model, 1, "bf16"), len(ids) - 1
    for first, last, at in ((0, 3, [2, 0]), (3, n, None), (n, n + 1, None)):
        tokens = ids[first:last].tolist(), [0] * (last - first), list(range(first, last))
        found = model.forward(*tokens, cache, "bf16", logits_at=at)
        assert torch.equal(found, expected[first:last] if at is None else expected[first:last][at])
    assert_same_cache(cache, 0, clean, len(ids))
