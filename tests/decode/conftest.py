"""Tiny random checkpoints of every family, written by transformers, one directory each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.decode.command_line import bundle as bundle
from tests.decode.command_line import bundled as bundled

SHAPE: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "rope_theta": 500.0,
}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}

# name -> (class in transformers, what differs from SHAPE)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-one-kv-head": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama-wide-head": ("Llama", {"head_dim": 24, "num_key_value_heads": 4}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama-dynamic": ("Llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama3": ("Llama", {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}}),
    "llama-yarn": ("Llama", {"rope_scaling": YARN | {"original_max_position_embeddings": 32}}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "mistral-no-window": ("Mistral", {"sliding_window": None, "hidden_size": 48}),
    "qwen2": ("Qwen2", {"intermediate_size": 152}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen2-yarn": ("Qwen2", {"rope_scaling": YARN | {"original_max_position_embeddings": 64}}),
    "qwen3": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3-biases": ("Qwen3", {"head_dim": 16, "attention_bias": True, "hidden_size": 96}),
}


def make(name: str) -> Any:
    """The transformers model of a family, every parameter random, gains and biases included."""
    import transformers

    kind, changes = FAMILIES[name]
    torch.manual_seed(sum(name.encode()))
    config = getattr(transformers, f"{kind}Config")(**SHAPE | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.mean() > 0.5 else 0.0))
    return model


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """family(name) -> (checkpoint directory, the transformers model saved in it), made once each."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            model = make(name)
            directory = tmp_path_factory.mktemp("checkpoints") / name
            # small shards, so that every family is read through an index
            model.save_pretrained(directory, max_shard_size="60KB")
            made[name] = directory, model
        return made[name]

    return get


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)
