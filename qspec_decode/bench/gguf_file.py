"""`write_gguf`: a checkpoint directory as a GGUF file, for llama.cpp to run the same weights.

Matrices are bf16 as in the checkpoint, or Q4_0 throughout, the output matrix included, which is the fastest
that llama.cpp has for them. Rows of the tables that stand for no token are zero: llama.cpp masks nothing, and
would draft what they repeat. Needs the package `gguf`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import torch
from torch import Tensor

from qspec_decode import config as configs
from qspec_decode import rope, tensors
from qspec_decode.checkpoint import Checkpoint
from qspec_decode.config import ModelConfig
from qspec_decode.progress import track
from qspec_kernels import UsageError

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_NAMES = {
    "input_layernorm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
# rotary types that divide the frequencies of the base, and do nothing else
_STRETCHED = ("linear", "llama3")
_TYPES = {
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


def write_gguf(directory: str | Path, out: str | Path, weights: str) -> Path:
    """Write a checkpoint directory as one GGUF file; returns `out`.

    Parameters
    ----------
    weights
        "bf16" or "q4_0".

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be read.
    UsageError
        For other weights, and for a model that llama.cpp would refuse or run otherwise than the checkpoint
        says: windows, some rotary embeddings and biases, widths that are no blocks of 32.
    """
    source, target = Path(directory), Path(out)
    config = configs.from_dir(source)
    if weights not in _TYPES:
        raise UsageError(f"weights are {weights!r}, expected one of {', '.join(_TYPES)}")
    _check(config, weights)
    checkpoint = Checkpoint(source)
    checkpoint.check(tensors.all_shapes(config))
    kind, file_type = _TYPES[weights]
    writer = gguf.GGUFWriter(target, _ARCHITECTURES[config.model_type])
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    num_tokens = _add_tokenizer(writer, source, config)
    plan = list(_plan(config))
    for name, _, shape in plan:
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            packed = gguf.quants.quant_shape_to_byte_shape(shape, kind)
            writer.add_tensor_info(name, packed, np.dtype(np.uint8), packed[0] * packed[1], kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, key, _ in track(plan, len(plan), f"writing {target.name}"):
            writer.write_tensor_data(_content(checkpoint, config, key, kind, num_tokens))
    finally:
        writer.close()
    return target


def _check(config: ModelConfig, weights: str) -> None:
    if any(config.windows):
        raise UsageError("the model's attention sees windows, which are not written as GGUF")
    if rope.frequencies(config.rope, config.head_dim)[1] != 1.0:
        raise UsageError(
            f"rope type {config.rope['rope_type']!r} scales attention, which is not written as GGUF"
        )
    if _ARCHITECTURES[config.model_type] != "llama":
        # llama.cpp refuses files with tensors that it does not look for
        if config.rope["rope_type"] in _STRETCHED:
            raise UsageError(f"rope type {config.rope['rope_type']!r} is written as GGUF for Llama alone")
        if config.o_bias or (config.qkv_bias and config.model_type == "qwen3"):
            raise UsageError(f"a {config.model_type} with biases in attention is not written as GGUF")
    widths = {config.hidden_size, config.intermediate_size, config.q_size}
    if weights == "q4_0" and any(width % 32 for width in widths):
        raise UsageError(f"Q4_0 has blocks of 32, and the model's widths are {sorted(widths)}")


def _add_shape(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope["rope_theta"]))
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, directory: Path, config: ModelConfig) -> int:
    """A byte-level BPE with its merges; of any other tokenizer only how many ids there are.

    Returns how many of them may stand for a token.
    """
    path = directory / "tokenizer.json"
    content: dict[str, Any] = configs.read_json(path) if path.exists() else {}
    model = content.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback") or not model.get("merges"):
        writer.add_tokenizer_model("none")
        return config.vocab_size
    texts = [f"[PAD{i}]" for i in range(config.vocab_size)]
    types = [gguf.TokenType.UNUSED] * config.vocab_size
    for text, index in model["vocab"].items():
        texts[index], types[index] = text, gguf.TokenType.NORMAL
    for token in content.get("added_tokens") or []:
        kind = gguf.TokenType.CONTROL if token.get("special") else gguf.TokenType.USER_DEFINED
        texts[token["id"]], types[token["id"]] = token["content"], kind
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    for eos in config.eos_token_ids[:1]:
        writer.add_eos_token_id(eos)
    return max(index for index, kind in enumerate(types) if kind != gguf.TokenType.UNUSED) + 1


def _plan(config: ModelConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name in GGUF, name in the checkpoint, shape) of every tensor."""
    shapes = tensors.all_shapes(config)
    yield "token_embd.weight", tensors.EMBEDDING, shapes[tensors.EMBEDDING]
    yield "output_norm.weight", tensors.FINAL_NORM, shapes[tensors.FINAL_NORM]
    if tensors.HEAD in shapes:
        yield "output.weight", tensors.HEAD, shapes[tensors.HEAD]
    if config.rope["rope_type"] in _STRETCHED:
        yield "rope_freqs.weight", "", (config.head_dim // 2,)
    for layer in range(config.num_hidden_layers):
        for key in tensors.layer_shapes(config):
            part, _, kind = key.rpartition("_")
            known = _NAMES[part if kind in ("proj", "bias") else key]
            name = tensors.layer_tensor(layer, key)
            yield f"blk.{layer}.{known}.{'bias' if kind == 'bias' else 'weight'}", name, shapes[name]


def _content(
    checkpoint: Checkpoint, config: ModelConfig, name: str, kind: gguf.GGMLQuantizationType, num_tokens: int
) -> Any:
    if not name:
        return _stretch(config).numpy()
    tensor = checkpoint.read(name)
    if name in (tensors.EMBEDDING, tensors.HEAD) and num_tokens < len(tensor):
        tensor[num_tokens:] = 0
    module = name.split(".")[-2]
    if _ARCHITECTURES[config.model_type] == "llama" and module in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if module == "q_proj" else config.num_key_value_heads
        tensor = interleave_halves(tensor, heads)
    if tensor.ndim == 1:
        return tensor.float().contiguous().numpy()
    if kind == gguf.GGMLQuantizationType.BF16:
        return tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    return gguf.quants.quantize(tensor.to(torch.bfloat16).float().contiguous().numpy(), kind)


def interleave_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of q_proj or k_proj in the order of llama.cpp's Llama.

    A checkpoint rotates feature i of a head with feature i + d/2, llama.cpp feature 2i with 2i + 1.
    """
    halves = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _stretch(config: ModelConfig) -> Tensor:
    """What llama.cpp divides the frequencies of the base by, per pair of features."""
    plain = {"rope_type": "default", "rope_theta": config.rope["rope_theta"]}
    base, _ = rope.frequencies(plain, config.head_dim)
    return base / rope.frequencies(config.rope, config.head_dim)[0]
