"""Greedy speculation on tiny random models: plain decoding's tokens, and a prefill's cache."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import qspec_decode.model
from qspec_decode import DraftModel, SpeculativeConfig, generate, load, speculate
from qspec_decode.ladder import build
from qspec_decode.levels import ModelLevel
from qspec_decode.model import Transformer
from qspec_kernels import dispatch

ALL = ("bf16", "int4", "mxfp4")
PRECISIONS = ("bf16", "w4a16", "w4a8", "w4a4", "mxfp4a16", "mxfp4a8")
# below the target: what may draft for it, alone or stacked
LADDERS: list[list[str]] = [
    ["mxfp4"],
    ["w4a4"],
    ["w4a8"],
    ["ngram"],
    ["small"],
    ["mxfp4", "small"],
    ["mxfp4", "ngram"],
    ["w4a16", "w4a4"],
    ["mxfp4a16", "w4a8", "w4a4"],
    ["mxfp4", "small", "ngram"],
    ["small", "ngram"],
]

# family, target, what drafts for it: texts of 64 tokens and more
LONG: list[tuple[str, str, list[str]]] = [
    ("llama", "fp32", ["mxfp4"]),
    ("mistral-window", "bf16", ["mxfp4", "small"]),
    ("qwen2", "w4a8", ["ngram"]),
    ("qwen3", "w4a8", ["w4a4"]),
    ("llama", "w4a4", ["small"]),
]

# more runs of everything random than a test run has time for
RUNS = int(os.environ.get("QSPEC_TEST_RUNS", "1"))

Families = Callable[[str], tuple[Path, Any]]


@pytest.fixture(params=["cpp", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run on the native kernels of this CPU, and on plain PyTorch."""
    if request.param == "torch":
        monkeypatch.setenv("QSPEC_CPU_ISA", "torch")
    dispatch.reset()
    if request.param == "cpp" and dispatch.isa() == "torch":
        pytest.skip("no native library for this CPU")
    yield request.param
    monkeypatch.undo()
    dispatch.reset()


def models(family: Families, name: str, **options: Any) -> tuple[Transformer, DraftModel]:
    model = load(family(name)[0], precisions=PRECISIONS, group_size=32, **options)
    small = load(family("llama-tied-one-kv-head")[0], precisions=("bf16",))
    return model, DraftModel(small)


def prompts_of(rng: random.Random, batch: int, vocab: int) -> list[list[int]]:
    return [[rng.randrange(vocab) for _ in range(rng.randint(1, 20))] for _ in range(batch)]


def config_of(rng: random.Random, names: list[str]) -> SpeculativeConfig:
    """Any K for each draft, and drafting that ends early or never does."""
    return SpeculativeConfig([rng.randint(1, 8) for _ in names], rng.choice([0.0, 0.2, 0.5, 0.9]))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2", "mistral-window"])
def test_greedy_speculation_equals_plain_decoding(family: Families, name: str, path: str) -> None:
    model, small = models(family, name, rotate=name == "llama")
    rng = random.Random(name + path)
    for _ in range(RUNS * (70 if path == "cpp" else 20)):
        batch, target = rng.randint(1, 8), rng.choice(["bf16", "bf16", "w4a16", "mxfp4a16"])
        prompts = prompts_of(rng, batch, model.vocab_size)
        names = rng.choice(LADDERS)
        draft = [small if level == "small" else level for level in names]
        options = {"target": target, "max_new_tokens": rng.randint(1, 24), "eos_token_id": rng.randrange(211)}
        config = config_of(rng, names)
        plain = generate(model, prompts, **options)
        fast = speculate(model, prompts, draft=draft, config=config, **options)
        assert fast.token_ids == plain.token_ids, (target, names, config, batch)
        assert fast.finish_reasons == plain.finish_reasons


@pytest.mark.parametrize(("name", "target", "names"), LONG, ids=str)
def test_long_texts_of_every_target_are_plain_decodings(
    family: Families, name: str, target: str, names: list[str]
) -> None:
    own = [level for level in names if level not in ("small", "ngram")]
    rotate = own if name == "llama" else ()
    model = load(family(name)[0], precisions=(target, *own), rotate=rotate)
    small = load(family("llama-tied-one-kv-head")[0], precisions=("bf16",))
    draft = [small if level == "small" else level for level in names]
    rng = random.Random(f"{name} {target}")
    for _ in range(RUNS):
        prompts = prompts_of(rng, rng.randint(1, 16), model.vocab_size)
        options = {"target": target, "max_new_tokens": rng.randint(64, 80), "eos_token_id": ()}
        config = config_of(rng, names)
        plain = generate(model, prompts, **options)
        fast = speculate(model, prompts, draft=draft, config=config, **options)
        assert fast.token_ids == plain.token_ids, (config, len(prompts))
        assert min(map(len, fast.token_ids)) >= 64


def test_a_kernel_whose_rows_depend_on_their_number_breaks_equality(
    family: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, small = models(family, "llama")
    exact = qspec_decode.model.linear

    def varying(x: Any, weight: Any, bias: Any = None, **options: Any) -> torch.Tensor:
        out = exact(x, weight, bias, **options)
        return out * (1 + 2e-3 * (len(out) - 1))

    monkeypatch.setattr(qspec_decode.model, "linear", varying)
    monkeypatch.setattr(qspec_decode.model, "MAX_TOKENS", 0)
    rng = random.Random(1)

    def equal() -> bool:
        prompts = prompts_of(rng, 3, model.vocab_size)
        plain = generate(model, prompts, max_new_tokens=24)
        return speculate(model, prompts, draft=small, max_new_tokens=24).token_ids == plain.token_ids

    assert not all(equal() for _ in range(20))


@pytest.mark.parametrize("draft", [["mxfp4"], ["small"], ["mxfp4", "small"], ["w4a16", "w4a4"]])
def test_the_committed_cache_is_a_clean_prefill_bit_for_bit(
    family: Families, monkeypatch: pytest.MonkeyPatch, draft: list[str]
) -> None:
    model, small = models(family, "llama")
    prompts = prompts_of(random.Random(3), 4, model.vocab_size)
    kept = []

    def spying(run: Any, *args: Any) -> ModelLevel:
        top = build(run, *args)
        # large garbage where nothing has been committed yet must never be read
        for tensor in (*top._cache.cache.k, *top._cache.cache.v):
            tensor.fill_(1e4)
        kept.append((run, top))
        return top

    monkeypatch.setattr("qspec_decode.ladder.build", spying)
    monkeypatch.setattr(ModelLevel, "give_back", lambda level: None)
    levels = [small if level == "small" else level for level in draft]
    out = speculate(model, prompts, draft=levels, num_speculative_tokens=3, max_new_tokens=20)
    assert out.token_ids == generate(model, prompts, max_new_tokens=20).token_ids
    cache = kept[0][1]._cache.cache
    for row, sequence in enumerate(out.sequences):
        # the last committed token has not been fed
        ids = sequence[:-1]
        clean = model.new_cache(1, len(ids), "bf16")
        model.forward(ids, torch.zeros_like(ids), torch.arange(len(ids)), clean, "bf16")
        for layer in range(model.config.num_hidden_layers):
            assert torch.equal(cache.k[layer][row, :, : len(ids)], clean.k[layer][0])
            assert torch.equal(cache.v[layer][row, :, : len(ids)], clean.v[layer][0])


def test_without_the_last_committed_token_in_the_verify_pass_the_cache_differs(
    family: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The off-by-one that leaves a draft's keys behind: output may survive it, the cache does not."""
    model, _ = models(family, "llama")
    prompts = prompts_of(random.Random(3), 4, model.vocab_size)
    kept = []

    def spying(run: Any, *args: Any) -> ModelLevel:
        top = build(run, *args)
        kept.append(top)
        return top

    forward = Transformer.forward

    def lazy(
        self: Transformer, ids: Any, rows: Any, positions: Any, cache: Any, precision: str, **options: Any
    ):
        if precision == "bf16" and options.get("logits_at") is None and len(ids) > 4:
            saved = [(k.clone(), v.clone()) for k, v in zip(cache.k, cache.v, strict=True)]
            out = forward(self, ids, rows, positions, cache, precision, **options)
            rows, positions = torch.tensor(rows), torch.tensor(positions)
            first = positions == torch.stack([positions[rows == row].min() for row in rows])
            for (k, v), (old_k, old_v) in zip(zip(cache.k, cache.v, strict=True), saved, strict=True):
                k[rows[first], :, positions[first]] = old_k[rows[first], :, positions[first]]
                v[rows[first], :, positions[first]] = old_v[rows[first], :, positions[first]]
            return out
        return forward(self, ids, rows, positions, cache, precision, **options)

    monkeypatch.setattr("qspec_decode.ladder.build", spying)
    monkeypatch.setattr(ModelLevel, "give_back", lambda level: None)
    monkeypatch.setattr(Transformer, "forward", lazy)
    out = speculate(model, prompts, draft="mxfp4", num_speculative_tokens=3, max_new_tokens=20)
    monkeypatch.undo()
    ids = out.sequences[0][:-1]
    clean = model.new_cache(1, len(ids), "bf16")
    model.forward(ids, torch.zeros_like(ids), torch.arange(len(ids)), clean, "bf16")
    assert not torch.equal(kept[0]._cache.cache.k[1][0, :, : len(ids)], clean.k[1][0])


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("precision", ["bf16", "w4a16", "mxfp4a8"])
def test_a_draft_of_the_target_itself_is_always_accepted(
    family: Families, precision: str, temperature: float
) -> None:
    model, _ = models(family, "llama")
    prompts = prompts_of(random.Random(5), 5, model.vocab_size)
    out = speculate(
        model, prompts, target=precision, draft=precision, temperature=temperature, seed=1, max_new_tokens=33
    )
    assert out.levels[0].num_draft_tokens > 0
    assert out.levels[0].acceptance_rate == 1.0


def test_one_verify_is_one_linear_call_per_weight(family: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = models(family, "llama")
    calls: dict[int, list[int]] = {}
    exact = qspec_decode.model.linear

    def counting(x: Any, weight: Any, bias: Any = None, **options: Any) -> torch.Tensor:
        out = exact(x, weight, bias, **options)
        calls.setdefault(id(weight), []).append(len(out))
        return out

    monkeypatch.setattr(qspec_decode.model, "linear", counting)
    # replays make the same calls without passing by here
    monkeypatch.setattr(qspec_decode.model, "MAX_TOKENS", 0)
    prompts = prompts_of(random.Random(7), 3, model.vocab_size)
    out = speculate(model, prompts, draft="mxfp4", num_speculative_tokens=4, max_new_tokens=12)
    for layer in model.sets["bf16"].layers:
        for weight in (layer.qkv, layer.o, layer.gate_up, layer.down):
            rows = calls[id(weight)]
            # the prefill, then one call a round; while all rows go on it holds 5 tokens of each
            assert len(rows) == 1 + out.num_target_steps
            assert rows[1] == 3 * 5


def test_sampled_rows_do_not_depend_on_their_neighbours(family: Families, path: str) -> None:
    model, small = models(family, "qwen2")
    prompts = prompts_of(random.Random(9), 4, model.vocab_size)
    options: dict[str, Any] = {"draft": ["mxfp4", small], "temperature": 0.8, "max_new_tokens": 16}
    together = speculate(model, prompts, seed=11, **options)
    for row in (2, 0):
        alone = speculate(model, [prompts[row]], seed=[together.seeds[row]], **options)
        assert alone.token_ids[0] == together.token_ids[row]
    backwards = speculate(model, prompts[::-1], seed=together.seeds[::-1], **options)
    assert backwards.token_ids == together.token_ids[::-1]
