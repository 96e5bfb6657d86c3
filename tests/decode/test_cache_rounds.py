"""B9: after every round the caches hold what a clean prefill computes, and what lies beyond is never read."""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import qspec_decode.model
from qspec_decode import DraftModel, generate, ladder, load, speculate
from qspec_decode.levels import ModelLevel
from qspec_decode.model import Transformer

Families = Callable[[str], tuple[Path, Any]]
Models = tuple[Transformer, DraftModel]

# target, drafts; the 4-bit weights are rotated, the bf16 ones are not
LADDERS: dict[str, tuple[str, list[str]]] = {
    "QSpec": ("w4a16", ["w4a4"]),
    "rotated draft": ("bf16", ["w4a8"]),
    "ML-SpecQD": ("bf16", ["mxfp4", "small"]),
    "small between": ("w4a16", ["small", "w4a4"]),
}


class KVWatch:
    """A streamer that compares every cache with a clean prefill after each round, then spoils the rest of it.

    Parameters
    ----------
    prompts
        Those of the call; from then on it follows the committed tokens by itself.
    monkeypatch
        Lets it know of the call's levels.
    """

    def __init__(self, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch):
        self.rows = [list(prompt) for prompt in prompts]
        self.num_checked = 0
        self._levels: list[ModelLevel] = []
        self._generator = torch.Generator().manual_seed(0)
        build = ladder.build

        def remember(*args: Any) -> ModelLevel:
            top = build(*args)
            level: Any = top
            while isinstance(level, ModelLevel):
                # of the levels that share a cache the uppermost says what it holds
                if all(level._cache is not other._cache for other in self._levels):
                    self._levels.append(level)
                level = level._inner[0] if level._inner else None
            self._spoil(range(len(self.rows)))
            return top

        monkeypatch.setattr(ladder, "build", remember)

    def put(
        self, rows: list[int], tokens: list[list[int]], num_drafted: list[int], num_accepted: list[int]
    ) -> None:
        for row, ids in zip(rows, tokens, strict=True):
            self.rows[row] += ids
        for level in self._levels:
            self._compare(level, rows)
        # all but the last token, which has not been fed
        held = [self._levels[0]._cache.valid[row] for row in rows]
        assert held == [len(self.rows[row]) - 1 for row in rows]
        self._spoil(rows)

    def end(self) -> None:
        pass

    def _compare(self, level: ModelLevel, rows: list[int]) -> None:
        """Committed keys and values, bit for bit with those of one pass over all tokens of all rows."""
        shared: Any = level._cache
        counts = [shared.valid[row] for row in rows]
        ids = [token for row, n in zip(rows, counts, strict=True) for token in self.rows[row][:n]]
        if not ids:
            return
        places = torch.tensor([(i, at) for i, n in enumerate(counts) for at in range(n)])
        clean: Any = level._model.new_cache(len(rows), shared.cache.capacity, level._precision)
        # op by op: a program is not worth recording for one pass
        clean.replay = None
        assert len(ids) == len(places), "more is held than was committed"
        level._model.forward(torch.tensor(ids), places[:, 0], places[:, 1], clean, level._precision)
        there = torch.tensor(rows)[places[:, 0]]
        for held, fresh in zip((*shared.cache.k, *shared.cache.v), (*clean.k, *clean.v), strict=True):
            assert torch.equal(held[there, :, places[:, 1]], fresh[places[:, 0], :, places[:, 1]])
        self.num_checked += len(ids)

    def _spoil(self, rows: Any) -> None:
        """Large finite garbage of either sign where nothing has been committed."""
        for level in self._levels:
            shared: Any = level._cache
            for held in (*shared.cache.k, *shared.cache.v):
                for row in rows:
                    beyond = held[row, :, shared.valid[row] :]
                    signs = torch.randint(0, 2, beyond.shape, generator=self._generator) * 2 - 1
                    beyond.copy_(1e4 * signs)


def loaded(family: Families) -> Models:
    precisions = ("bf16", "w4a16", "w4a8", "w4a4", "mxfp4")
    model = load(family("llama")[0], precisions=precisions, group_size=32, rotate=True)
    return model, DraftModel(load(family("llama-tied-one-kv-head")[0], precisions=("bf16",)))


@pytest.fixture(scope="module")
def models(family: Families) -> Models:
    return loaded(family)


def options(models: Models, name: str, temperature: float) -> dict[str, Any]:
    target, names = LADDERS[name]
    draft = [models[1] if level == "small" else level for level in names]
    common = {"max_new_tokens": 16, "eos_token_id": (), "temperature": temperature, "seed": 3}
    return {"target": target, "draft": draft, "num_speculative_tokens": 3} | common


def prompts_of(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(211) for _ in range(rng.randint(1, 15))] for _ in range(4)]


def check(models: Models, call: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(2)
    undisturbed = speculate(models[0], prompts, **call)
    watch = KVWatch(prompts, monkeypatch)
    out = speculate(models[0], prompts, streamer=watch, **call)
    assert out.token_ids == undisturbed.token_ids
    assert watch.rows == [row.tolist() for row in out.sequences]
    assert watch.num_checked > sum(map(len, watch.rows))
    if not call["temperature"]:
        plain = {name: call[name] for name in ("target", "max_new_tokens", "eos_token_id")}
        assert out.token_ids == generate(models[0], prompts, **plain).token_ids


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", LADDERS)
def test_after_every_round_the_caches_are_a_clean_prefill(
    models: Models, name: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(models, options(models, name, temperature), monkeypatch)


@pytest.mark.usefixtures("torch_backend")
def test_so_they_are_without_native_kernels(family: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    models = loaded(family)
    check(models, options(models, "QSpec", 0.8) | {"max_new_tokens": 10}, monkeypatch)


def drafts_keys_survive() -> AbstractContextManager[Any]:
    """The verify pass leaves the keys and values that the draft wrote, where there are any."""
    exact = Transformer.forward

    def forward(
        self: Transformer, ids: Any, rows: Any, positions: Any, cache: Any, precision: str, **given: Any
    ) -> Tensor:
        tensors, rows, positions = (*cache.k, *cache.v), torch.as_tensor(rows), torch.as_tensor(positions)
        before = [held[rows, :, positions].clone() for held in tensors]
        out = exact(self, ids, rows, positions, cache, precision, **given)
        if precision == "w4a16" and given.get("phase") == "decode":
            # of each row all but the last token, which the draft has not fed
            drafted = torch.cat([rows[1:] == rows[:-1], torch.tensor([False])])
            for held, old in zip(tensors, before, strict=True):
                held[rows[drafted], :, positions[drafted]] = old[drafted]
        return out

    return patch.object(Transformer, "forward", forward)


def only_the_target_rolls_back() -> AbstractContextManager[Any]:
    """What a model below computed for refused drafts stays in its cache."""
    exact = ModelLevel.keep

    def keep(self: ModelLevel, rows: list[int], lengths: list[int]) -> None:
        if self._index == 0:
            with patch.object(self, "_inner", None):
                exact(self, rows, lengths)

    return patch.object(ModelLevel, "keep", keep)


def one_position_too_many() -> AbstractContextManager[Any]:
    """A token looks at the position behind its own."""
    exact = qspec_decode.model.attention

    def attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor, **given: Any) -> Tensor:
        return exact(q, k, v, rows, positions + 1, **given)

    return patch.object(qspec_decode.model, "attention", attention)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        (drafts_keys_survive, "QSpec"),
        (only_the_target_rolls_back, "ML-SpecQD"),
        (one_position_too_many, "QSpec"),
    ],
)
def test_a_fault_in_a_cache_is_seen(
    models: Models,
    mutant: Callable[[], AbstractContextManager[Any]],
    name: str,
    temperature: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a recorded program would go on with the sound kernels
    monkeypatch.setattr(qspec_decode.model, "MAX_TOKENS", 0)
    with mutant(), pytest.raises(AssertionError):
        check(models, options(models, name, temperature), monkeypatch)
