"""GGUF files hold the weights as llama.cpp reads them: a plain forward says what the checkpoint says."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qspec_decode import config as configs
from qspec_kernels import UsageError
from tests.decode import checkpoints

gguf = pytest.importorskip("gguf")
gguf_file = pytest.importorskip("qspec_decode.bench.gguf_file")

Family = Callable[[str], tuple[Path, Any]]


class Read:
    """A file: its fields, and its tensors in float32, quantised ones dequantised."""

    def __init__(self, path: Path):
        reader = gguf.GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
        self.tensors = {
            tensor.name: torch.from_numpy(
                np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            )
            for tensor in reader.tensors
        }

    def weight(self, layer: int, name: str) -> Tensor:
        return self.tensors[f"blk.{layer}.{name}.weight"]

    def linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        bias = self.tensors.get(f"blk.{layer}.{name}.bias")
        return torch.nn.functional.linear(x, self.weight(layer, name), bias)


def rms(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gain


def turned(x: Tensor, file: Read, pairs_are_neighbours: bool) -> Tensor:
    """Rotary embedding of [tokens, heads, d], as the architecture of the file pairs features."""
    arch = file.fields["general.architecture"]
    d = file.fields[f"{arch}.rope.dimension_count"]
    base = file.fields[f"{arch}.rope.freq_base"]
    stretch = file.tensors.get("rope_freqs.weight", torch.ones(d // 2))
    angles = torch.arange(len(x))[:, None] * (base ** (-torch.arange(0, d, 2) / d) / stretch)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    if pairs_are_neighbours:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def logits(file: Read, ids: Tensor) -> Tensor:
    """What llama.cpp computes from the file, written down plainly."""
    arch = file.fields["general.architecture"]
    heads, kv_heads = (file.fields[f"{arch}.attention.head_count{kind}"] for kind in ("", "_kv"))
    eps = file.fields[f"{arch}.attention.layer_norm_rms_epsilon"]
    x = file.tensors["token_embd.weight"][ids]
    future = torch.full((len(ids), len(ids)), -math.inf).triu(1)
    for layer in range(file.fields[f"{arch}.block_count"]):
        h = rms(x, file.weight(layer, "attn_norm"), eps)
        q, k, v = (file.linear(h, layer, f"attn_{name}") for name in "qkv")
        q, k, v = q.view(len(ids), heads, -1), k.view(len(ids), kv_heads, -1), v.view(len(ids), kv_heads, -1)
        if f"blk.{layer}.attn_q_norm.weight" in file.tensors:
            q = rms(q, file.weight(layer, "attn_q_norm"), eps)
            k = rms(k, file.weight(layer, "attn_k_norm"), eps)
        q, k = (turned(t, file, pairs_are_neighbours=arch == "llama") for t in (q, k))
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1]) + future
        h = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + file.linear(h, layer, "attn_output")
        h = rms(x, file.weight(layer, "ffn_norm"), eps)
        h = torch.nn.functional.silu(file.linear(h, layer, "ffn_gate")) * file.linear(h, layer, "ffn_up")
        x = x + file.linear(h, layer, "ffn_down")
    x = rms(x, file.tensors["output_norm.weight"], eps)
    return x @ file.tensors.get("output.weight", file.tensors["token_embd.weight"]).T


@pytest.mark.parametrize(
    "name", ["llama", "llama-tied-one-kv-head", "llama-biases", "llama3", "llama-linear", "qwen2", "qwen3"]
)
def test_a_file_says_what_its_checkpoint_says(family: Family, tmp_path: Path, name: str) -> None:
    import transformers

    directory, _ = family(name)
    file = Read(gguf_file.write_gguf(directory, tmp_path / "model.gguf", "bf16"))
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.bfloat16().float()
    ids = torch.arange(60) * 7 % 211
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    torch.testing.assert_close(
        logits(file, ids), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of whole blocks of 32, with a tokenizer."""
    return checkpoints.write(tmp_path_factory.mktemp("gguf") / "llama", vocab_size=640)


@pytest.mark.parametrize(("weights", "kind"), [("bf16", "BF16"), ("q4_0", "Q4_0")])
def test_matrices_are_of_one_type_and_vectors_float32(
    checkpoint: Path, tmp_path: Path, weights: str, kind: str
) -> None:
    file = Read(gguf_file.write_gguf(checkpoint, tmp_path / "model.gguf", weights))
    for name, found in file.types.items():
        assert found.name == ("F32" if file.tensors[name].ndim == 1 else kind), name
    assert "output.weight" not in file.tensors, "the embedding table is the output matrix"


def test_q4_0_is_the_same_matrix_in_four_bits(checkpoint: Path, tmp_path: Path) -> None:
    exact, coarse = (
        Read(gguf_file.write_gguf(checkpoint, tmp_path / weights, weights)) for weights in ("bf16", "q4_0")
    )
    for name, tensor in exact.tensors.items():
        if tensor.ndim == 2:
            # steps of an eighth of the largest of 32
            largest = tensor.unflatten(1, (-1, 32)).abs().amax(-1).repeat_interleave(32, 1)
            assert ((coarse.tensors[name] - tensor).abs() <= largest / 7).all(), name


def test_the_tokenizer_is_there_with_its_merges(checkpoint: Path, tmp_path: Path) -> None:
    file = Read(gguf_file.write_gguf(checkpoint, tmp_path / "model.gguf", "bf16"))
    fields = file.fields
    content = configs.read_json(checkpoint / "tokenizer.json")["model"]
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert (fields["tokenizer.ggml.model"], len(tokens)) == ("gpt2", 640)
    assert all(tokens[index] == text for text, index in content["vocab"].items())
    assert types[0] == gguf.TokenType.CONTROL
    assert types[5] == gguf.TokenType.NORMAL
    assert set(types[600:]) == {gguf.TokenType.UNUSED}
    assert len(set(tokens)) == 640
    table = file.tensors["token_embd.weight"]
    assert not table[600:].any(), "what stands for no token is never the likeliest"
    assert table[:600].any(1).all()
    assert fields["tokenizer.ggml.merges"][3] == " ".join(content["merges"][3])


def test_ids_alone_do_without_a_tokenizer(family: Family, tmp_path: Path) -> None:
    fields = Read(gguf_file.write_gguf(family("llama")[0], tmp_path / "model.gguf", "bf16")).fields
    assert fields["tokenizer.ggml.model"] == "none"
    assert fields["llama.vocab_size"] == 211


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("mistral-window", "bf16", "windows"),
        ("llama-yarn", "bf16", "'yarn' scales attention"),
        ("qwen3-biases", "bf16", "a qwen3 with biases in attention"),
        ("llama", "q4_0", r"blocks of 32, .* \[64, 176\]"),
        ("llama", "q8_0", "'q8_0', expected one of bf16, q4_0"),
    ],
)
def test_what_llama_cpp_would_run_otherwise_is_refused(
    family: Family, tmp_path: Path, name: str, weights: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        gguf_file.write_gguf(family(name)[0], tmp_path / "model.gguf", weights)
    assert not list(tmp_path.iterdir())
