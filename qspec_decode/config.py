"""`ModelConfig`: what the JSON files of a checkpoint say of the model, checked and normalised."""

import hashlib
import json
import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qspec_decode import demo, rope
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
    only pad the table, are -inf. `vocabulary` is a digest of the tokens in `tokenizer.json`, equal for
    models whose ids stand for the same texts; None where there is no such file. The `*_block` fields are
    the widths of the Hadamard matrices of rotated weight sets on the residual stream, before `o_proj` and
    before `down_proj`; 0 stands for the full width, or the widest block that has a known matrix.
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
    vocabulary: str | None = None
    eos_token_ids: tuple[int, ...] = ()
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
    except ValueError as error:  # not JSON, or not even UTF-8
        raise CheckpointError(f"{path} is not valid JSON: {error}", "Download the file again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


_WHAT_A_CHECKPOINT_IS = (
    "A checkpoint is a directory with config.json, *.safetensors and tokenizer.json, as `hf download` "
    "or `save_pretrained` make it; nothing is downloaded here."
)


def resolve(path: str | Path) -> Path:
    """The directory a name stands for: "demo" and "demo-small" are bundled, others are paths."""
    bundled = {"demo": "target", "demo-small": "small"}.get(str(path))
    return demo.path(bundled) if bundled else Path(path)


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
        return _value(raw, where, key, "an integer above 0", default)

    def switch(key: str) -> bool:
        return _value(raw, where, key, "true or false", False)

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
    attention_bias = switch("attention_bias") and family in ("llama", "qwen3")
    num_real_tokens, vocabulary = _tokens(directory, number("vocab_size"))
    return ModelConfig(
        model_type=family,
        vocab_size=number("vocab_size"),
        hidden_size=hidden,
        intermediate_size=number("intermediate_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(_value(raw, where, "rms_norm_eps", "a number above 0", 1e-6)),
        rope=rope.parse(raw, positions, where),
        max_position_embeddings=positions,
        tie_word_embeddings=switch("tie_word_embeddings"),
        qkv_bias=family == "qwen2" or attention_bias,
        o_bias=attention_bias,
        mlp_bias=switch("mlp_bias") and family == "llama",
        qk_norm=family == "qwen3",
        windows=_windows(raw, num_layers, where),
        num_real_tokens=num_real_tokens,
        vocabulary=vocabulary,
        eos_token_ids=_eos(directory, raw, where),
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# what a value can be asked to be, in the words of the error
_KINDS: dict[str, Callable[[Any], bool]] = {
    "an integer above 0": lambda v: _is_integer(v) and v > 0,
    "an integer of at least 0": lambda v: _is_integer(v) and v >= 0,
    "a number above 0": lambda v: (_is_integer(v) or isinstance(v, float)) and 0 < v < math.inf,
    "true or false": lambda v: isinstance(v, bool),
    "a list": lambda v: isinstance(v, list),
    "a token id or a list of them": lambda v: all(map(_is_integer, v if isinstance(v, list) else [v])),
    "a list of objects with ids": lambda v: (
        isinstance(v, list) and all(isinstance(token, dict) and _is_integer(token.get("id")) for token in v)
    ),
    "an object of tokens and ids, or a list of tokens": lambda v: (
        isinstance(v, list) or (isinstance(v, dict) and all(map(_is_integer, v.values())))
    ),
}


def _value(content: dict[str, Any], where: str, key: str, kind: str, default: Any = None) -> Any:
    """What a file says of `key`, or `default` where that is nothing or null."""
    value = content.get(key)
    value = default if value is None else value
    if not _KINDS[kind](value):
        raise CheckpointError(f"{where}: {key} is {reprlib.repr(value)}, expected {kind}")
    return value


def _refuse_unsupported(raw: dict[str, Any], where: str) -> None:
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in SUPPORTED:
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
    if family == "llama" or (
        family != "mistral" and not _value(raw, where, "use_sliding_window", "true or false", False)
    ):
        window = None
    if window is not None:
        _value(raw, where, "sliding_window", "an integer above 0", window)
    if family in ("llama", "mistral") or raw.get("layer_types") is None:
        first = _value(raw, where, "max_window_layers", "an integer of at least 0", 28)
        first = 0 if family == "mistral" else first
        return tuple(window if layer >= first else None for layer in range(num_layers))
    kinds = _value(raw, where, "layer_types", "a list")
    found = sorted(set(map(str, kinds)))
    if len(kinds) != num_layers or not {"full_attention", "sliding_attention"}.issuperset(found):
        raise CheckpointError(
            f"{where}: layer_types has {len(kinds)} entries of kinds {found}, "
            f"expected {num_layers} of 'full_attention' and 'sliding_attention'"
        )
    if "sliding_attention" in kinds and window is None:
        raise CheckpointError(f"{where}: layer_types names 'sliding_attention' but sliding_window is off")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _eos(directory: Path, raw: dict[str, Any], where: str) -> tuple[int, ...]:
    """Ids that end a text: those of `generation_config.json` where it names any, else of `config.json`."""
    path = directory / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    if "eos_token_id" in generation:
        raw, where = generation, str(path)
    eos = _value(raw, where, "eos_token_id", "a token id or a list of them", [])
    return tuple(eos) if isinstance(eos, list) else (eos,)


def _tokens(directory: Path, vocab_size: int) -> tuple[int | None, str | None]:
    """(`num_real_tokens`, `vocabulary`) of a `ModelConfig`, as `tokenizer.json` says.

    Ids are real up to the highest one that the file knows, where the table is longer than that. Tokens
    that were added to the trained ones do not count in the digest: releases of a family rename them.
    """
    path = directory / "tokenizer.json"
    if not path.exists():
        return None, None
    content, where = read_json(path), str(path)
    model = content.get("model")
    vocab = _value(
        model if isinstance(model, dict) else {},
        f"{where}, model",
        "vocab",
        "an object of tokens and ids, or a list of tokens",
    )
    added = _value(content, where, "added_tokens", "a list of objects with ids", [])
    ids = range(len(vocab)) if isinstance(vocab, list) else vocab.values()
    real = max([*ids, *(token["id"] for token in added)], default=-1) + 1
    # a tokenizer that is written again may list its tokens in another order
    digest = hashlib.sha256(json.dumps(vocab, sort_keys=True).encode()).hexdigest()
    return real if 0 < real < vocab_size else None, digest
