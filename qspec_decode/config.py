"""`ModelConfig`: what `config.json` and `generation_config.json` say, checked and normalised."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qspec_decode import rope
from qspec_kernels import CheckpointError

SUPPORTED = {
    "llama": "Llama 2, 3, 3.1, 3.2, 3.3 and models in their layout",
    "mistral": "Mistral 7B and models in its layout",
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3, dense",
}


@dataclass(frozen=True)
class ModelConfig:
    """Shape and arithmetic of one decoder-only transformer.

    `windows` has one entry per layer: the number of positions its attention sees (itself
    included), or None for all. `rope` is the flat dictionary of `qspec_decode.rope.parse`.
    `num_real_tokens` is the number of ids that stand for text; logits of the ids behind it, which
    only pad the table, are -inf. The `*_block` fields are the widths of the Hadamard matrices of
    rotated weight sets on the residual stream, before `o_proj` and before `down_proj`; 0 stands for the
    full width, or the widest block that has a known matrix.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: dict[str, Any]
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    num_real_tokens: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    sampling_defaults: dict[str, Any] = field(default_factory=dict)
    hidden_block: int = 0
    heads_block: int = 0
    intermediate_block: int = 0

    @property
    def max_positions(self) -> int:
        """Positions the model can be asked for, its rotary parameters considered."""
        return rope.max_positions(self.rope, self.max_position_embeddings)

    @property
    def q_size(self) -> int:
        """Output features of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Output features of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a `CheckpointError` names the file when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist", _WHAT_A_CHECKPOINT_IS) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", "Download the file again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


_WHAT_A_CHECKPOINT_IS = (
    "A checkpoint is a directory with config.json, *.safetensors and tokenizer.json, as `hf download` "
    "or `save_pretrained` make it; nothing is downloaded here."
)


def check_directory(path: Path) -> None:
    """Raise a `CheckpointError` that says what a checkpoint is when `path` cannot be one."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", _WHAT_A_CHECKPOINT_IS)
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file, expected a directory", _WHAT_A_CHECKPOINT_IS)
    if not (path / "config.json").exists():
        raise CheckpointError(f"{path} has no config.json", _WHAT_A_CHECKPOINT_IS)


def from_dir(path: str | Path) -> ModelConfig:
    """Read the configuration of a Hugging Face checkpoint directory.

    Raises
    ------
    CheckpointError
        When there is no readable `config.json`, for an architecture or an option that is not
        supported, and for values that contradict each other.
    """
    directory = Path(path)
    check_directory(directory)
    raw = read_json(directory / "config.json")
    where = str(directory / "config.json")
    _refuse_unsupported(raw, where)

    def number(key: str, default: int | None = None) -> int:
        value = raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{where}: {key} is {value!r}, expected an integer above 0")
        return value

    family = raw["model_type"]
    hidden, heads = number("hidden_size"), number("num_attention_heads")
    kv_heads = number("num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    head_dim = number("head_dim", 128 if family == "qwen3" else hidden // heads)
    if head_dim % 2:
        raise CheckpointError(f"{where}: head_dim is {head_dim}, expected an even number")
    num_layers, positions = number("num_hidden_layers"), number("max_position_embeddings")
    attention_bias = bool(raw.get("attention_bias", False)) and family in ("llama", "qwen3")
    generation = _generation(directory)
    bos, eos, pad = (generation.get(k, raw.get(k)) for k in ("bos_token_id", "eos_token_id", "pad_token_id"))
    return ModelConfig(
        model_type=family,
        vocab_size=number("vocab_size"),
        hidden_size=hidden,
        intermediate_size=number("intermediate_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(raw.get("rms_norm_eps") or 1e-6),
        rope=rope.parse(raw, positions, where),
        max_position_embeddings=positions,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or attention_bias,
        o_bias=attention_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)) and family == "llama",
        qk_norm=family == "qwen3",
        windows=_windows(raw, num_layers, where),
        num_real_tokens=_num_real_tokens(directory, number("vocab_size")),
        bos_token_id=bos,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        pad_token_id=pad,
        sampling_defaults={k: generation[k] for k in _SAMPLING if generation.get(k) is not None},
    )


_SAMPLING = ("do_sample", "temperature", "top_k", "top_p")


def _refuse_unsupported(raw: dict[str, Any], where: str) -> None:
    family = raw.get("model_type")
    if family not in SUPPORTED:
        names = ", ".join(f"{name} ({what})" for name, what in SUPPORTED.items())
        raise CheckpointError(f"{where}: model_type {family!r} is not supported", f"Supported: {names}.")
    if raw.get("quantization_config") or raw.get("compression_config"):
        raise CheckpointError(
            f"{where}: the checkpoint is already quantised, expected fp32, bf16 or fp16 weights",
            "Load the original checkpoint; it is quantised while it loads.",
        )
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(f"{where}: hidden_act is {activation!r}, expected 'silu'")


def _windows(raw: dict[str, Any], num_layers: int, where: str) -> tuple[int | None, ...]:
    """Per layer, how many positions attention sees: all layers of Mistral, some of Qwen."""
    family = raw["model_type"]
    # where the key is absent, transformers' configuration classes of these families have 4096; null is none
    window = raw.get("sliding_window", 4096)
    if family == "llama" or (family != "mistral" and not raw.get("use_sliding_window", False)):
        window = None
    if window is not None and (not isinstance(window, int) or window < 1):
        raise CheckpointError(f"{where}: sliding_window is {window!r}, expected an integer above 0 or null")
    kinds = raw.get("layer_types")
    if family in ("llama", "mistral"):
        kinds = None
    if kinds is None:
        first = 0 if family == "mistral" else raw.get("max_window_layers", 28)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown or len(kinds) != num_layers:
        raise CheckpointError(
            f"{where}: layer_types has {len(kinds)} entries of kinds {sorted(set(kinds))}, "
            f"expected {num_layers} of 'full_attention' and 'sliding_attention'"
        )
    if "sliding_attention" in kinds and window is None:
        raise CheckpointError(f"{where}: layer_types names 'sliding_attention' but sliding_window is off")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _generation(directory: Path) -> dict[str, Any]:
    path = directory / "generation_config.json"
    return read_json(path) if path.exists() else {}


def _num_real_tokens(directory: Path, vocab_size: int) -> int | None:
    """One more than the highest id that `tokenizer.json` knows, when the table is longer than that."""
    path = directory / "tokenizer.json"
    if not path.exists():
        return None
    content = read_json(path)
    model = content.get("model")
    vocab = model.get("vocab", {}) if isinstance(model, dict) else {}
    ids = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]
    ids += [token["id"] for token in content.get("added_tokens", [])]
    real = max(ids, default=-1) + 1
    return real if 0 < real < vocab_size else None
