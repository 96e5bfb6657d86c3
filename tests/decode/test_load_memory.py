"""Loading takes little more memory than the model it makes, and says beforehand how much that is."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qspec_decode import config as configs
from qspec_decode import machine, memory, tensors
from qspec_decode.cache import KVCache
from qspec_decode.load import load
from qspec_decode.weights import weight_bytes
from qspec_kernels import UsageError

Family = Callable[[str], tuple[Path, Any]]

CONFIG = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}

# the peak is reset between the first load, which pays for imports and thread pools, and the second
MEASURE = """
import json, sys
from pathlib import Path
from qspec_decode.load import load
from qspec_decode.memory import give_back

def status(field):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024

small, large, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
load(small, **options)
give_back()
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = load(large, **options)
print(json.dumps({"peak": status("VmHWM") - before, "after": status("VmRSS") - before}))
"""


def write(directory: Path, **changes: Any) -> Path:
    """A random bf16 checkpoint, its layers alternating between two shards."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    for index, (name, shape) in enumerate(tensors.all_shapes(configs.from_dir(directory)).items()):
        shards[index % 2][name] = torch.randn(shape, dtype=torch.bfloat16)
    names = [f"model-{number}.safetensors" for number in range(2)]
    for shard, name in zip(shards, names, strict=True):
        save_file(shard, directory / name)
    where = {tensor: name for shard, name in zip(shards, names, strict=True) for tensor in shard}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return directory


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint, and one of 136 MB, which four bits a weight make 37."""
    directory = tmp_path_factory.mktemp("memory")
    layers = {"small": 1, "large": 64}
    return {name: write(directory / name, num_hidden_layers=count) for name, count in layers.items()}


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
@pytest.mark.parametrize(
    "options",
    [
        {"precisions": ["bf16"]},
        {"precisions": ["bf16", "mxfp4"]},
        {"precisions": ["bf16", "mxfp4"], "rotate": True},
        {"precisions": ["mxfp4"]},
        {"precisions": ["mxfp4"], "rotate": True},
        {"precisions": ["w4a8"], "rotate": True},
    ],
    ids=["bf16", "bf16-mxfp4", "bf16-mxfp4-rotated", "mxfp4", "mxfp4-rotated", "w4a8-rotated"],
)
def test_the_peak_is_below_1_3_times_the_model(checkpoints: dict[str, Path], options: dict[str, Any]) -> None:
    small, large = str(checkpoints["small"]), str(checkpoints["large"])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, small, large, json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    measured = json.loads(done.stdout)
    estimate = memory.memory_estimate(large, **options)
    assert measured["after"] > 0.95 * estimate.total
    assert measured["peak"] < 1.3 * estimate.total
    assert measured["peak"] < estimate.peak


@pytest.mark.parametrize("name", ["llama", "llama-tied-one-kv-head", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "precisions", ["fp32", "bf16", "w4a8", "mxfp4", ("fp32", "bf16", "w4a8", "mxfp4")], ids=str
)
def test_the_estimate_is_what_a_load_takes(
    family: Family, name: str, precisions: str | tuple[str, ...]
) -> None:
    directory, _ = family(name)
    options: dict[str, Any] = {} if precisions in ("fp32", "bf16") else {"keep": "layers.0.down_proj"}
    options |= {"group_size": 32, "quant_lm_head": "w4a8"} if "w4a8" in precisions else {}
    model = load(directory, precisions, **options)
    matrices = [model.embedding]
    for weights in model.sets.values():
        matrices += [w for layer in weights.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        matrices += [w for w in (weights.head, weights.draft_head) if w is not None]
    taken = sum(weight_bytes(w) for w in {id(w): w for w in matrices}.values())
    estimate = memory.memory_estimate(directory, precisions, **options)
    # byte orders of a device pad rows to whole tiles, which is a lot for matrices this small
    assert estimate.total <= taken <= 1.2 * estimate.total


def test_the_estimate_takes_the_arguments_of_load() -> None:
    plain = memory.memory_estimate("demo", "mxfp4")
    assert plain.total == memory.memory_estimate(configs.resolve("demo"), "mxfp4").total
    assert memory.memory_estimate("demo", "mxfp4", rotate=True).peak > plain.peak
    with pytest.raises(UsageError, match="rotate is True"):
        memory.memory_estimate("demo", "bf16", rotate=True)


def cache(batch: int = 4, capacity: int = 100) -> KVCache:
    """800 bytes a position, 80 kB a row."""
    return KVCache(5, batch, 2, capacity, 20, torch.bfloat16)


def test_a_cache_that_does_not_fit_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache().num_bytes == 4 * 100 * 800
    monkeypatch.setattr(machine, "available_bytes", lambda: 4 * 100 * 800)
    assert cache().batch == 4
    monkeypatch.setattr(machine, "available_bytes", lambda: 4 * 100 * 800 - 1)
    with pytest.raises(UsageError, match=r"KV cache of 4 sequences x 100 positions needs 0.0 GB") as error:
        cache()
    assert "These would fit: 3 such sequences, or 99 positions each." in error.value.hint
    assert "max_new_tokens" in error.value.hint
    monkeypatch.setattr(machine, "available_bytes", lambda: 50 * 800)
    with pytest.raises(UsageError, match="are available") as error:
        cache()
    assert "These would fit: 12 positions each." in error.value.hint
    monkeypatch.setattr(machine, "available_bytes", lambda: 1)
    with pytest.raises(UsageError, match="are available") as error:
        cache()
    assert "would fit" not in error.value.hint


def test_a_cache_that_the_system_refuses_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: None)
    with pytest.raises(UsageError, match=r"needs .* GB, which the system refused"):
        cache(1 << 20, 1 << 30)
