"""llama.cpp itself, where its package is installed: it reads our files and says what the checkpoint says."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec_decode.bench.llama_cpp_peer import LlamaCpp
from qspec_decode.bench.llama_cpp_process import LlamaCppProcess
from qspec_decode.bench.peers import Transformers

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
gguf_file = pytest.importorskip("qspec_decode.bench.gguf_file", reason="gguf is not installed")

Family = Callable[[str], tuple[Path, Any]]
Logits = Callable[[torch.Tensor], torch.Tensor]
# of several lengths, so that rows stand at different positions
PROMPTS = [
    [i * 7 % 211 for i in range(start, start + length)] for start, length in ((1, 30), (50, 17), (99, 1))
]


def of_checkpoint(directory: Path) -> Logits:
    """transformers in float32, over weights in bf16."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).float()
    return lambda ids: model(ids[None]).logits[0]


def of_file(path: Path) -> Logits:
    """A plain forward pass over the file's weights."""
    from tests.decode.test_gguf import Read, logits

    return lambda ids: logits(Read(path), ids)


def shortfall(logits: Logits, prompt: list[int], tokens: list[int]) -> float:
    """By how much the likeliest token beats the chosen one, at the worst position, in logits' deviations."""
    with torch.no_grad():
        found = logits(torch.tensor([*prompt, *tokens]))[len(prompt) - 1 : -1]
    chosen = found.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return float(((found.amax(1) - chosen) / found.std(1)).max())


def check(peer: LlamaCpp, logits: Logits, tolerance: float) -> None:
    """All rows together and each alone: nothing but what rounding may choose."""
    together = peer.decode(PROMPTS, 12).token_ids
    for prompt, text in zip(PROMPTS, together, strict=True):
        (alone,) = peer.decode([prompt], 12).token_ids
        for tokens in (text, alone):
            assert len(tokens) == 12
            assert shortfall(logits, prompt, tokens) < tolerance


@pytest.mark.parametrize(
    "name", ["llama", "llama-tied-one-kv-head", "llama-biases", "llama3", "llama-linear", "qwen2", "qwen3"]
)
def test_llama_cpp_says_what_the_checkpoint_says(family: Family, tmp_path: Path, name: str) -> None:
    directory, _ = family(name)
    file = gguf_file.write_gguf(directory, tmp_path / "model.gguf", "bf16")
    check(LlamaCpp(file, "bf16", 1), of_checkpoint(directory), 0.03)


def test_llama_cpp_says_what_four_bits_say(bundle: Path, tmp_path: Path) -> None:
    file = gguf_file.write_gguf(bundle / "target", tmp_path / "model.gguf", "q4_0")
    # beside 4-bit weights its inputs are rounded to 8 bits
    check(LlamaCpp(file, "q4_0", 1), of_file(file), 0.1)


@pytest.mark.parametrize("kind", ["bf16", "q4_0"])
def test_llama_cpp_takes_turns_with_transformers(bundle: Path, tmp_path: Path, kind: str) -> None:
    """With AMX the tiles of one cannot be the other's: see `LlamaCppProcess`."""
    file = gguf_file.write_gguf(bundle / "target", tmp_path / "model.gguf", kind)
    transformers = Transformers(bundle / "target")
    with closing(LlamaCppProcess(file, kind, 1)) as peer:
        before = peer.decode(PROMPTS, 12).token_ids
        for _ in range(2):
            transformers.decode(PROMPTS, 3)
            assert peer.decode(PROMPTS, 12).token_ids == before
