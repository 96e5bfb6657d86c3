"""`write_checkpoint`: a widened model as an ordinary Hugging Face directory, for other programs to run."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qspec_decode import config as configs
from qspec_decode import tensors
from qspec_decode.checkpoint import Checkpoint
from qspec_decode.config import ModelConfig
from qspec_decode.demo.widen_plan import WidenPlan, plan
from qspec_decode.demo.widen_tensors import repeated_rows, widen_dense
from qspec_decode.progress import track
from qspec_kernels import UsageError

_COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
# what each side of a matrix is repeated with: the fields of WidenPlan
_SIDES = {
    "q": ("heads", "hidden"),
    "k": ("heads", "hidden"),
    "v": ("heads", "hidden"),
    "o": ("hidden", "heads"),
    "gate": ("intermediate", "hidden"),
    "up": ("intermediate", "hidden"),
    "down": ("hidden", "intermediate"),
}


def write_checkpoint(base_dir: str | Path, scale: str | WidenPlan, out_dir: str | Path) -> Path:
    """Write the widened bf16 model of a checkpoint directory, one shard per layer; returns `out_dir`.

    Its text is the base checkpoint's. Ids beyond the tokenizer's repeat real ones in the table, so that
    programs that do not mask them still find a real id first.

    Raises
    ------
    CheckpointError
        If the base checkpoint cannot be read.
    UsageError
        If the scale is unknown or `out_dir` exists; nothing is left there half written.
    """
    base, out = Path(base_dir), Path(out_dir)
    small = configs.from_dir(base)
    chosen = plan(scale, small) if isinstance(scale, str) else scale
    wide = chosen.config(small)
    checkpoint = Checkpoint(base)
    checkpoint.check(tensors.all_shapes(small))
    if out.exists():
        raise UsageError(f"{out} exists already", "Name a directory that does not exist, or remove it.")
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True)
    try:
        _write_config(base, partial, wide)
        _write_shards(checkpoint, partial, small, chosen)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return out


def _write_config(base: Path, out: Path, wide: ModelConfig) -> None:
    raw: dict[str, Any] = configs.read_json(base / "config.json")
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    raw |= {name: getattr(wide, name) for name in (*names, "num_key_value_heads", "head_dim")}
    raw["torch_dtype"] = "bfloat16"
    raw.pop("dtype", None)
    if raw.get("layer_types") is not None:
        kinds = ["sliding_attention" if window else "full_attention" for window in wide.windows]
        raw["layer_types"] = kinds
    (out / "config.json").write_text(json.dumps(raw, indent=2))
    for name in _COPIED:
        if (base / name).exists():
            shutil.copyfile(base / name, out / name)


def _write_shards(checkpoint: Checkpoint, out: Path, small: ModelConfig, chosen: WidenPlan) -> None:
    count = chosen.num_layers + 1
    index: dict[str, str] = {}
    total = 0
    for shard in track(range(count), count, f"writing {out.stem}"):
        if shard == 0:
            content = _tables(checkpoint, small, chosen)
        else:
            content = _layer(checkpoint, small, chosen, shard - 1)
        name = f"model-{shard + 1:05d}-of-{count:05d}.safetensors"
        save_file(content, out / name, metadata={"format": "pt"})
        index |= dict.fromkeys(content, name)
        total += sum(tensor.nbytes for tensor in content.values())
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (out / "model.safetensors.index.json").write_text(json.dumps(document, indent=2))


def _tables(checkpoint: Checkpoint, small: ModelConfig, chosen: WidenPlan) -> dict[str, Tensor]:
    tile = chosen.hidden_tile
    ids = torch.arange(chosen.vocab_size) % small.vocab_size
    names = [tensors.EMBEDDING] if small.tie_word_embeddings else [tensors.EMBEDDING, tensors.HEAD]
    tables = {name: checkpoint.read(name).to(torch.bfloat16)[ids].repeat(1, tile) for name in names}
    gain = checkpoint.read(tensors.FINAL_NORM).to(torch.bfloat16).repeat(tile)
    return tables | {tensors.FINAL_NORM: gain / tile}


def _layer(checkpoint: Checkpoint, small: ModelConfig, chosen: WidenPlan, layer: int) -> dict[str, Tensor]:
    silent = layer >= small.num_hidden_layers
    content = {}
    for key in tensors.layer_shapes(small):
        name = tensors.layer_tensor(chosen.source(layer, small), key)
        tensor = checkpoint.read(name).to(torch.bfloat16)
        part, _, kind = key.partition("_")
        if kind == "norm":
            wide = tensor
        elif part not in _SIDES:
            wide = tensor.repeat(chosen.hidden_tile)
        else:
            out_tile, in_tile = (getattr(chosen, f"{side}_tile") for side in _SIDES[part])
            if kind == "bias":
                wide = tensor[repeated_rows(len(tensor), out_tile, (), tensor.device)]
            else:
                wide = widen_dense(tensor, out_tile, in_tile)
        if silent and part in ("o", "down"):
            wide = torch.zeros_like(wide)
        content[tensors.layer_tensor(layer, key)] = wide.contiguous()
    return content
