"""Widening: the wide model has a real model's shape and says what the small one says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qspec_decode import config as configs
from qspec_decode import memory
from qspec_decode.demo import widen
from qspec_decode.demo.widen_plan import WidenPlan
from qspec_decode.load import load
from qspec_decode.model import Transformer
from qspec_decode.weights import weight_bytes
from qspec_kernels import PRECISIONS, PackedWeight, UsageError, formats

PLAN = WidenPlan(hidden_tile=4, intermediate_tile=2, heads_tile=4, num_layers=3, vocab_size=300)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral-window": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """checkpoint(family) -> a random checkpoint whose widths hold whole groups of 32."""
    import transformers

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            kind, changes = FAMILIES[name]
            torch.manual_seed(0)
            shape = {"vocab_size": 211, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
            config = getattr(transformers, f"{kind}Config")(**shape | heads | changes)
            model = getattr(transformers, f"{kind}ForCausalLM")(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(torch.randn_like(parameter) * 0.3)
            made[name] = tmp_path_factory.mktemp("small") / name
            model.to(torch.bfloat16).save_pretrained(made[name])
        return made[name]

    return get


def logits(model: Transformer, precision: str, *, draft_head: bool = False) -> Tensor:
    """Of two rows, one of them in two calls, so that the cache is read as well."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 211, (20,), generator=generator)
    cache = model.new_cache(2, 16, precision)
    rows = torch.tensor([0] * 11 + [1] * 9)
    positions = torch.tensor([*range(11), *range(9)])
    first = model.forward(
        ids[:16], rows[:16], positions[:16], cache, precision, draft_head=draft_head
    ).clone()
    second = model.forward(ids[16:], rows[16:], positions[16:], cache, precision, draft_head=draft_head)
    return torch.cat([first, second])


def assert_says_the_same(small: Transformer, wide: Transformer, precision: str, tolerance: float) -> None:
    heads = (False, True) if PRECISIONS[precision].weights == "mxfp4" else (False,)
    for draft_head in heads:
        expected = logits(small, precision, draft_head=draft_head)
        found = logits(wide, precision, draft_head=draft_head)
        assert found.shape == (20, PLAN.vocab_size)
        assert (found[:, 211:] == -torch.inf).all()
        error = (found[:, :211] - expected).abs().max() / expected.abs().max()
        assert error < tolerance, f"{precision}: {error:.2e}"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rotate", [False, True], ids=["plain", "rotated"])
def test_logits_are_the_same_in_float64(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, rotate: bool
) -> None:
    # 4-bit logits of 8-bit activations are few values and often tie: another order of sums may then choose
    # another of them to be computed again
    monkeypatch.setattr("qspec_decode.model.rescore", lambda *_, **__: None)
    small = load(
        checkpoint(name),
        ("fp32", "w4a16", "mxfp4"),
        group_size=32,
        rotate=("fp32", "w4a16", "mxfp4") if rotate else False,
        dtype=torch.float64,
    )
    wide = widen.widen(small, PLAN)
    all_precisions = ("fp32", "w4a16", "w4a8", "w4a4", "mxfp4a16", "mxfp4a8")
    for precision in all_precisions if name == "qwen2" else ("fp32", "w4a8", "mxfp4a8"):
        assert_says_the_same(small, wide, precision, 1e-10)


@pytest.mark.parametrize("name", ["llama-tied", "qwen2"])
def test_logits_are_the_same_in_float32(checkpoint: Callable[[str], Path], name: str) -> None:
    small = load(checkpoint(name), ("fp32",))
    assert_says_the_same(small, widen.widen(small, PLAN), "fp32", 1e-5)


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "fp32"])
def test_every_precision_is_close_on_this_machine(checkpoint: Callable[[str], Path], precision: str) -> None:
    """Sums in another order may turn a rounding of an activation, never more."""
    group_size = 32 if PRECISIONS[precision].weights == "int4" else 128
    small = load(checkpoint("llama-tied"), (precision,), group_size=group_size)
    assert_says_the_same(small, widen.widen(small, PLAN), precision, 0.05)


def test_per_channel_scales_are_widened(checkpoint: Callable[[str], Path]) -> None:
    small = load(checkpoint("qwen2"), ("w4a4",), group_size=-1, dtype=torch.float64)
    wide = widen.widen(small, PLAN)
    assert_says_the_same(small, wide, "w4a4", 1e-10)
    assert_says_the_same(small, wide, "w4a8", 1e-10)


def test_the_wide_model_has_the_planned_shape_and_memory_of_its_own(
    checkpoint: Callable[[str], Path],
) -> None:
    small = load(checkpoint("llama-tied"), ("fp32", "bf16", "mxfp4"))
    wide = widen.widen(small, replace(PLAN, num_layers=5))
    assert wide.config.hidden_size == 256
    assert wide.config.intermediate_size == 320
    assert (wide.config.num_attention_heads, wide.config.num_key_value_heads) == (16, 4)
    assert wide.config.head_dim == small.config.head_dim
    assert wide.config.num_real_tokens == 211
    assert wide.embedding is wide.sets["fp32"].head
    assert wide.sets["bf16"].head is wide.sets["mxfp4"].head
    for weights in wide.sets.values():
        assert len(weights.layers) == 5
        storages = set()
        for layer in weights.layers:
            assert matrix_shape(layer.qkv) == (16 * 24, 256)
            assert matrix_shape(layer.o) == (256, 256)
            assert matrix_shape(layer.gate_up) == (640, 256)
            assert matrix_shape(layer.down) == (256, 320)
            for weight in (layer.qkv, layer.o, layer.gate_up, layer.down):
                storages.add((weight.data if isinstance(weight, PackedWeight) else weight).data_ptr())
        assert len(storages) == 20
        for layer in weights.layers[2:]:
            assert torch.count_nonzero(values(layer.o)) == torch.count_nonzero(values(layer.down)) == 0
            assert torch.equal(values(layer.qkv), values(weights.layers[0].qkv)) or layer is weights.layers[3]


def matrix_shape(weight: Tensor | PackedWeight) -> tuple[int, ...]:
    return tuple(weight.shape)


def values(weight: Tensor | PackedWeight) -> Tensor:
    return formats.dequantize(weight) if isinstance(weight, PackedWeight) else weight


def test_a_model_that_would_not_fit_is_refused_before_it_is_made(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = load(checkpoint("llama-tied"), ("fp32", "mxfp4"))
    huge = WidenPlan(64, 64, 64, 4, 128256)
    wide_bytes = []
    wide = widen.widen(small, PLAN)
    for weights in wide.sets.values():
        wide_bytes.append(weights.num_bytes + (weight_bytes(weights.draft_head) if weights.draft_head else 0))
    monkeypatch.setattr(memory, "available_bytes", lambda: sum(wide_bytes) * 11 // 10)
    assert widen.widen(small, PLAN).config == wide.config
    monkeypatch.setattr(memory, "available_bytes", lambda: sum(wide_bytes) * 9 // 10)
    with pytest.raises(UsageError, match="GB are available"):
        widen.widen(small, PLAN)
    with pytest.raises(UsageError, match="GB are available"):
        widen.widen(small, huge)
    # what the host has says nothing about a GPU
    small.device = torch.device("cuda:0")
    assert widen.widen(small, PLAN).config == wide.config


@pytest.mark.parametrize("name", FAMILIES)
def test_a_written_checkpoint_is_what_transformers_reads(
    checkpoint: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    import transformers

    base = checkpoint(name)
    out = widen.write_checkpoint(base, PLAN, tmp_path / "wide")
    assert out == tmp_path / "wide"
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]
    ids = torch.arange(12)[None] * 17
    with torch.no_grad():
        expected, found = (
            transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
            for path in (base, out)
        )
    torch.testing.assert_close(found[..., :211], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(found.argmax(-1), expected.argmax(-1)), "ids that were added never come first"
    # and it is the model that widening after loading gives, byte for byte
    ours, theirs = widen.widen(load(base), PLAN), load(out)
    assert torch.equal(ours.embedding, theirs.embedding)
    assert torch.equal(ours.final_norm, theirs.final_norm)
    for mine, read in zip(ours.sets["bf16"].layers, theirs.sets["bf16"].layers, strict=True):
        for field, value in vars(mine).items():
            assert value is None or torch.equal(value, getattr(read, field)), field
    expected_config = PLAN.config(configs.from_dir(base))
    blocks = {"hidden_block": 0, "heads_block": 0, "intermediate_block": 0}
    assert replace(expected_config, num_real_tokens=None, **blocks) == configs.from_dir(out)


def test_a_checkpoint_is_written_whole_or_not_at_all(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="taken exists already"):
        widen.write_checkpoint(checkpoint("qwen2"), PLAN, tmp_path / "taken")
    monkeypatch.setattr("qspec_decode.demo.widen_checkpoint.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        widen.write_checkpoint(checkpoint("qwen2"), PLAN, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
