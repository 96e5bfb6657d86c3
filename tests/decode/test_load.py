"""Checkpoints of every family against transformers: logits, greedy text, and what load can be asked for."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qspec_decode import precision as names
from qspec_decode.load import load
from qspec_decode.model import Transformer
from tests.decode.conftest import FAMILIES

Family = Callable[[str], tuple[Path, Any]]
PROMPT = torch.tensor([3, 77, 150, 9, 9, 200, 41, 5, 120, 33, 17])


def prefill(model: Transformer, ids: Tensor, precision: str) -> Tensor:
    """Logits of every token of one prompt."""
    cache = model.new_cache(1, len(ids), precision)
    return model.forward(ids, torch.zeros_like(ids), torch.arange(len(ids)), cache, precision)


def greedy(model: Transformer, prompt: Tensor, count: int, precision: str) -> list[int]:
    """Tokens chosen one at a time through the cache."""
    cache = model.new_cache(1, len(prompt) + count, precision)
    ids, start, chosen = prompt, 0, []
    for _ in range(count):
        positions = torch.arange(start, start + len(ids))
        last = torch.tensor([len(ids) - 1])
        logits = model.forward(ids, torch.zeros_like(ids), positions, cache, precision, logits_at=last)
        start += len(ids)
        ids = logits.argmax(-1)
        chosen.append(int(ids))
    return chosen


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_those_of_transformers(family: Family, name: str) -> None:
    directory, theirs = family(name)
    ids = torch.randint(0, 211, (100,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    found = prefill(load(directory, "fp32"), ids, "fp32")
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_text_equals_that_of_transformers(family: Family, name: str) -> None:
    directory, theirs = family(name)
    theirs.generation_config.eos_token_id = None
    with torch.no_grad():
        expected = theirs.generate(PROMPT[None], max_new_tokens=64, do_sample=False, pad_token_id=0)
    found = greedy(load(directory, "fp32"), PROMPT, 64, "fp32")
    assert found == expected[0, len(PROMPT) :].tolist()
    assert len(set(found)) > 4


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["f32", "f64"]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_rotation_changes_nothing(family: Family, name: str, dtype: torch.dtype, bound: float) -> None:
    directory, _ = family(name)
    plain = prefill(load(directory, "fp32", dtype=dtype), PROMPT, "fp32")
    model = load(directory, "fp32", dtype=dtype, rotate=("fp32",))
    assert model.sets["fp32"].rotated
    rotated = prefill(model, PROMPT, "fp32")
    assert rotated.dtype == dtype
    assert relative_error(rotated, plain) < bound
    # and it is another computation, not the same one
    assert not torch.equal(rotated, plain)


def test_rotated_and_plain_sets_write_the_same_cache(family: Family) -> None:
    directory, _ = family("qwen2")
    caches = []
    for rotate in (False, ("fp32",)):
        model = load(directory, "fp32", dtype=torch.float64, rotate=rotate)
        caches.append(model.new_cache(1, len(PROMPT), "fp32"))
        positions = torch.arange(len(PROMPT))
        model.forward(PROMPT, torch.zeros_like(PROMPT), positions, caches[-1], "fp32")
    for tensors in ("k", "v"):
        for plain, rotated in zip(getattr(caches[0], tensors), getattr(caches[1], tensors), strict=True):
            torch.testing.assert_close(rotated, plain, rtol=1e-10, atol=1e-10)


def test_one_file_and_many_shards_load_the_same(family: Family, tmp_path: Path) -> None:
    directory, theirs = family("llama")
    assert len(list(directory.glob("*.safetensors"))) > 3
    theirs.save_pretrained(tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) == 1
    sharded, whole = (prefill(load(d, "fp32"), PROMPT, "fp32") for d in (directory, tmp_path / "whole"))
    assert torch.equal(sharded, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_checkpoints_load(family: Family, tmp_path: Path, dtype: torch.dtype) -> None:
    _, theirs = family("qwen3")
    theirs = copy.deepcopy(theirs)
    copy.deepcopy(theirs).to(dtype).save_pretrained(tmp_path / "half")
    with torch.no_grad():
        # not .to(dtype).float(), which would round the rotary frequencies as well
        for parameter in theirs.parameters():
            parameter.copy_(parameter.to(dtype))
        expected = theirs(PROMPT[None]).logits[0]
    assert relative_error(prefill(load(tmp_path / "half", "fp32"), PROMPT, "fp32"), expected) < 1e-4


@pytest.mark.parametrize("precision", ["bf16", "w4a16", "w4a8", "w4a4", "mxfp4a16", "mxfp4a8"])
def test_low_precision_stays_near_full_precision(family: Family, precision: str) -> None:
    directory, _ = family("llama")
    options = {"group_size": 32} if precision.startswith("w4") else {}
    model = load(directory, ("fp32", precision), **options)
    exact, found = (prefill(model, PROMPT, p) for p in ("fp32", precision))
    similarity = torch.nn.functional.cosine_similarity(exact, found, dim=-1).mean()
    floor = {"bf16": 0.999, "w4a4": 0.7}.get(precision, 0.9)
    assert floor < float(similarity) < 0.9999999


@pytest.mark.parametrize("precision", ["bf16", "w4a16", "w4a8", "mxfp4a8"])
def test_a_precision_does_not_depend_on_the_others_loaded(family: Family, precision: str) -> None:
    directory, _ = family("llama-tied-one-kv-head")
    alone = load(directory, precision)
    among = load(directory, ("fp32", "bf16", "w4a4", "mxfp4"))
    assert torch.equal(prefill(alone, PROMPT, precision), prefill(among, PROMPT, precision))


def test_sets_share_what_they_can(family: Family) -> None:
    directory, _ = family("qwen3")
    model = load(directory, ("bf16", "w4a16", "w4a4", "mxfp4"))
    assert model.precisions == ("bf16", "w4a16", "w4a4", "mxfp4a8", "w4a8", "mxfp4a16")
    assert set(model.sets) == {"bf16", "int4", "mxfp4"}
    heads = [weights.head for weights in model.sets.values()]
    assert all(head is model.embedding for head in heads)
    norms = [weights.layers[0].q_norm for weights in model.sets.values()]
    assert all(norm is norms[0] for norm in norms)
    assert model.sets["mxfp4"].draft_head is not None
    assert model.sets["int4"].draft_head is None
    untied = load(family("llama")[0], ("bf16", "mxfp4"))
    assert untied.sets["bf16"].head is untied.sets["mxfp4"].head is not untied.embedding


def test_kept_parts_stay_in_bf16(family: Family) -> None:
    directory, _ = family("llama")
    model = load(directory, "mxfp4", keep=("lm_head", "layers.1", "model.layers.0.self_attn.k_proj"))
    first, second = model.sets["mxfp4"].layers
    for weight in (first.qkv, second.qkv, second.o, second.gate_up, second.down):
        assert isinstance(weight, Tensor)
        assert weight.dtype == torch.bfloat16
    for weight in (first.o, first.gate_up, first.down):
        assert not isinstance(weight, Tensor)
    assert model.sets["mxfp4"].draft_head is None


def test_rotation_is_of_the_quantised_sets_unless_named(family: Family) -> None:
    directory, _ = family("llama")
    everything = ("fp32", "bf16", "w4a8", "mxfp4")
    model = load(directory, everything, rotate=True)
    assert {name for name, weights in model.sets.items() if weights.rotated} == {"int4", "mxfp4"}
    named = load(directory, everything, rotate=("w4a8",))
    assert {name for name, weights in named.sets.items() if weights.rotated} == {"int4"}


@pytest.mark.parametrize(
    ("asked", "first"), [("mxfp4", "mxfp4a8"), (("w4a8", "bf16"), "w4a8"), (("bf16", "w4a8"), "bf16")]
)
def test_precisions_are_in_the_order_asked_for(
    family: Family, asked: str | tuple[str, ...], first: str
) -> None:
    model = load(family("llama")[0], asked)
    assert model.precisions[0] == first
    assert set(model.precisions) == set(names.served_by(model.sets))


def test_bundled_names_resolve() -> None:
    model = load("demo", "bf16")
    assert model.config.hidden_size == 256
    assert model.vocab_size == 4096
    small = load("demo-small", "bf16")
    assert small.vocab_size == 4096
    assert small.config.vocabulary == model.config.vocabulary is not None
