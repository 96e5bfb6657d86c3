"""Damaged directories and contradictory options: the error names the file, the value and the way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qspec_decode import memory, prepare
from qspec_decode.load import load, load_tokenizer
from qspec_kernels import CheckpointError, UsageError

Family = Callable[[str], tuple[Path, Any]]
O_PROJ = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture
def directory(family: Family, tmp_path: Path) -> Path:
    """A copy of a sharded checkpoint, to be damaged."""
    return Path(shutil.copytree(family("llama")[0], tmp_path / "copy"))


def shard_of(directory: Path, name: str) -> Path:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    return directory / index["weight_map"][name]


def change(directory: Path, name: str, new: Callable[[torch.Tensor], torch.Tensor | None]) -> Path:
    """Rewrite a tensor's shard with new(tensor) in its place, or without it."""
    path = shard_of(directory, name)
    tensors = load_file(path)
    replaced = new(tensors.pop(name))
    # a clone, because the shard is mapped while it is overwritten
    kept = {key: tensor.clone() for key, tensor in tensors.items()}
    path.unlink()
    save_file(kept if replaced is None else kept | {name: replaced.contiguous()}, path)
    return path


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"meta-llama/Llama-3.2-1B does not exist") as error:
        load("meta-llama/Llama-3.2-1B")
    assert "nothing is downloaded" in error.value.hint
    (tmp_path / "model.gguf").touch()
    with pytest.raises(CheckpointError, match=r"model.gguf is a file, expected a directory"):
        load(tmp_path / "model.gguf")


def test_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"has no config.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ['{"model_type": "llama", ', "[]", "\xff"])
def test_a_config_that_is_not_an_object(directory: Path, text: str) -> None:
    (directory / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config.json (is not valid JSON|holds a list)"):
        load(directory)


def test_a_missing_shard(directory: Path) -> None:
    path = shard_of(directory, O_PROJ)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"the shard .*{path.name} is missing"):
        load(directory)


@pytest.mark.parametrize("keep", [0, 4, 100, -1], ids=["empty", "in-length", "in-header", "last-byte"])
def test_a_truncated_shard(directory: Path, keep: int) -> None:
    path = shard_of(directory, O_PROJ)
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match=f"{path.name} is truncated"):
        load(directory)


def test_an_index_that_points_elsewhere(directory: Path) -> None:
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][O_PROJ] = "../other/model.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="expected a file beside it"):
        load(directory)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load(directory)


def test_a_missing_tensor(directory: Path) -> None:
    change(directory, O_PROJ, lambda _: None)
    with pytest.raises(CheckpointError, match=f"lacks the tensor {O_PROJ}"):
        load(directory)


def test_a_shape_that_contradicts_the_config(directory: Path) -> None:
    path = change(directory, O_PROJ, lambda tensor: tensor[:, :60])
    with pytest.raises(CheckpointError, match=rf"{path.name}: {O_PROJ} has shape \[64, 60\].*\[64, 64\]"):
        load(directory)


def test_a_config_of_another_model(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"intermediate_size": 192}))
    with pytest.raises(CheckpointError, match=r"mlp.*has shape .*176.*192"):
        load(directory)


def test_an_unsupported_dtype(directory: Path) -> None:
    path = change(directory, O_PROJ, lambda tensor: tensor.to(torch.int8))
    with pytest.raises(CheckpointError, match=f"{path.name}: {O_PROJ} is of an unsupported dtype"):
        load(directory)


@pytest.mark.parametrize(
    ("value", "word"), [(torch.nan, "NaN"), (torch.inf, "infinity"), (-torch.inf, "infinity")]
)
@pytest.mark.parametrize("name", [O_PROJ, "model.embed_tokens.weight", "model.norm.weight"])
def test_weights_that_are_no_numbers(directory: Path, name: str, value: float, word: str) -> None:
    def poison(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    path = change(directory, name, poison)
    with pytest.raises(CheckpointError, match=f"{path.name}: {name} contains {word}"):
        load(directory, "mxfp4")


def test_pickle_files_are_refused(directory: Path) -> None:
    for path in (*directory.glob("*.safetensors"), directory / "model.safetensors.index.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"has neither model.safetensors nor"):
        load(directory)
    torch.save({}, directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only as pickle files, which can run code: pytorch_model.bin"):
        load(directory)


def test_a_checkpoint_without_a_tokenizer(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match=r"tokenizer.json"):
        load_tokenizer(directory)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precisions": "int3"}, "unknown precision 'int3', expected one of fp32, bf16"),
        ({"precisions": ()}, "precisions is empty"),
        ({"precisions": "w4a8", "group_size": 48}, "group_size is 48, expected one of 32, 64, 128, -1"),
        ({"rotate": ("w4a8",)}, r"rotate names 'w4a8'.*\(bf16\)"),
        ({"rotate": ("w5",)}, "unknown precision 'w5'"),
        ({"keep": ("layers.2",)}, r"keep names 'layers.2'.*'layers.1'"),
        ({"keep": ("embed",)}, "keep names 'embed'"),
        ({"dtype": torch.float16}, "dtype is torch.float16"),
        ({"group_size": 64}, "group_size is 64, which is about int4 weights, and those loaded are bf16"),
        ({"precisions": "mxfp4", "group_size": -1}, "group_size is -1, .* those loaded are mxfp4"),
        ({"rotate": True}, "rotate is True, which is about int4 and mxfp4 weights"),
        ({"keep": ("layers.0", "down_proj")}, "keep names 'layers.0', 'down_proj', which is about int4 and"),
        ({"precisions": "w4a8", "keep": "lm_head"}, "keep names 'lm_head', which is about mxfp4 weights"),
    ],
)
def test_options_that_cannot_be_served(directory: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(directory, **options)


def test_a_model_that_does_not_fit_says_what_would(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = memory.memory_estimate(directory, ("fp32", "bf16"))
    monkeypatch.setattr(memory, "available_bytes", lambda: both.peak - 1)
    with pytest.raises(UsageError, match=r"loading fp32 \+ bf16 weights needs .* available") as error:
        load(directory, ("fp32", "bf16"))
    assert "mxfp4 alone" in error.value.hint
    assert "would fit" in error.value.hint
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(UsageError, match=r"0.0 GB are available") as error:
        load(directory, "mxfp4")
    assert "Even int4 alone needs" in error.value.hint
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert load(directory).precisions == ("bf16",)


def test_memory_that_the_system_refuses_is_the_same_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        # larger than any address space
        torch.empty(1 << 62, dtype=torch.uint8)

    monkeypatch.setattr(prepare, "quantise", refuse)
    with pytest.raises(
        UsageError, match=r"loading mxfp4 weights needs .*, which the system refused"
    ) as error:
        load(directory, "mxfp4")
    assert "int4 alone" in error.value.hint

    def fail(*_: Any) -> None:
        raise RuntimeError("another matter")

    monkeypatch.setattr(prepare, "quantise", fail)
    with pytest.raises(RuntimeError, match="another matter"):
        load(directory, "mxfp4")
