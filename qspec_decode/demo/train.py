"""Train the bundled demo checkpoints on the Python standard library's own source.

Two Llama-layout models share one byte-level BPE tokenizer of 4,096 entries: `target` (6.75M
parameters, 12.9 MiB in bf16) and `small` (0.7M), which drafts for it at the lowest level.
Both are written as ordinary Hugging Face directories. One file in `HELD_OUT_SHARE`,
chosen by a hash of its path, is never trained on; bits per byte are reported on those files.

    python -m qspec_decode.demo.train --out demo-checkpoints

needs the extra `hf`. On two CPU cores the target takes about 40 minutes and the sibling, which also learns
from the target's predictions, about 10. A checkpoint that is already there is kept. `qspec bench train`
trains `large` (126M) by the same recipe on a GPU.
"""

import argparse
import json
import math
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from qspec_decode.demo.corpus import EOS, SEQUENCE_LENGTH, VOCAB_SIZE, batches, corpus
from qspec_decode.demo.corpus import source_files as source_files
from qspec_decode.progress import track

SHAPES: dict[str, dict[str, Any]] = {
    "target": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 64,
    },
    "small": {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
    # a power of two below the widths of real models, as the target is, so that it can be widened to them
    "large": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
}
_RATE = 2e-3
_RATE_WIDTH = 256


def build(shape: dict[str, Any]) -> Any:
    """A randomly initialised model of one of `SHAPES`, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **shape,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=SEQUENCE_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config)


def load(path: Path) -> Any:
    """A finished checkpoint, in float32."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def bits_per_byte(model: Any, stream: np.ndarray, num_bytes: int) -> float:
    """Mean cross-entropy of the held-out stream in bits per byte of text, windows disjoint."""
    model.eval()
    nats = 0.0
    starts = range(0, len(stream) - 1, SEQUENCE_LENGTH)
    for start in track(starts, len(starts), "reading held-out files"):
        ids = torch.from_numpy(stream[start : start + SEQUENCE_LENGTH + 1])[None].to(model.device)
        logits = model(input_ids=ids[:, :-1]).logits.float()
        nats += F.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
    model.train()
    return nats / math.log(2) / num_bytes


@dataclass(frozen=True)
class Length:
    """How long to train: until so many steps or seconds are over, whichever comes first.

    Parameters
    ----------
    batch
        Sequences per step.
    """

    steps: int
    batch: int = 8
    seconds: float = math.inf

    def share(self, step: int, elapsed: float) -> float:
        """How much of it is over before a step, 0 to 1."""
        return min(1.0, max(step / self.steps, elapsed / self.seconds))


@dataclass(frozen=True)
class Step:
    """How far training is: steps taken, the loss of the last one in nats per token, and tokens per second."""

    number: int
    loss: float
    tokens_per_second: float

    def __str__(self) -> str:
        return f"step {self.number:5d}  loss {self.loss:.3f}  {self.tokens_per_second:.0f} tokens/s"


def fit(
    model: Any,
    stream: np.ndarray,
    length: Length,
    report: Callable[[Step], None],
    teacher: Any | None = None,
    seed: int = 0,
) -> int:
    """Train in place, where the model is: AdamW with warm-up, then a cosine down to 2 %, as large ones are.

    With a teacher the loss is the mean of the usual cross-entropy and the teacher's:
    a drafter is worth what it agrees with its target, not what it knows of the data. A wider model learns
    at a rate as much lower as it is wider (arXiv 2203.03466). `report` is told of every 20th step;
    returns how many were taken.
    """
    device = model.device
    peak = _RATE * min(1.0, _RATE_WIDTH / model.config.hidden_size)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    # Muon learns faster, but from weights of so flat a spectrum that rounding them to four bits changes
    # twice as many tokens as it does in models of practice
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    model.train()
    started, source = time.monotonic(), batches(stream, length.batch, seed)
    step = -1
    for step, share in _steps(length, started):
        warm = min(1.0, (step + 1) / 60)
        for group in optimiser.param_groups:
            group["lr"] = peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        ids = next(source).to(device)
        loss = _loss(model, ids[:, :-1], ids[:, 1:].reshape(-1), teacher)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        model.zero_grad(set_to_none=True)
        if step % 20 == 0:
            rate = (step + 1) * ids.numel() / (time.monotonic() - started)
            report(Step(step + 1, loss.item(), rate))
    return step + 1


def _loss(model: Any, inputs: torch.Tensor, labels: torch.Tensor, teacher: Any | None) -> torch.Tensor:
    soft = None
    with torch.autocast(inputs.device.type, torch.bfloat16):
        logits = model(input_ids=inputs).logits
        if teacher is not None:
            with torch.no_grad():
                soft = teacher(input_ids=inputs).logits.float().softmax(-1)
    logits = logits.float().reshape(-1, VOCAB_SIZE)
    loss = F.cross_entropy(logits, labels)
    if soft is None:
        return loss
    return 0.5 * loss + 0.5 * F.cross_entropy(logits, soft.reshape(-1, VOCAB_SIZE))


def _steps(length: Length, started: float) -> Iterator[tuple[int, float]]:
    """(number, share of training that is over before it) of every step, beside a bar."""
    step = 0
    for percent in track(range(100), 100, "training"):
        while (share := length.share(step, time.monotonic() - started)) < (percent + 1) / 100:
            yield step, share
            step += 1


def save(model: Any, tokenizer: Tokenizer, out: Path, card: dict[str, object]) -> None:
    """Write a bf16 Hugging Face directory with a card of how it came about; it appears when complete."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    partial = out.with_name(out.name + ".partial")
    try:
        model.to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save(str(partial / "tokenizer.json"))
        (partial / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "bos_token": EOS,
                    "eos_token": EOS,
                    "model_max_length": SEQUENCE_LENGTH,
                },
                indent=2,
            )
        )
        (partial / "training.json").write_text(json.dumps(card, indent=2))
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def card(steps: int, batch: int, bits: float | None) -> dict[str, object]:
    """How a checkpoint came about, for `training.json`; without bits it has not been measured."""
    return {
        "data": f"Python {sysconfig.get_python_version()} standard library (PSF licence)",
        "steps": steps,
        "batch": batch,
        "sequence_length": SEQUENCE_LENGTH,
        "held_out_bits_per_byte": bits and round(bits, 4),
    }


def main() -> None:
    """Train tokenizer, target and sibling."""
    parser = argparse.ArgumentParser(description="Train the bundled demo checkpoints.")
    parser.add_argument("--out", type=Path, required=True, help="directory for both checkpoints")
    parser.add_argument("--steps", type=int, default=2800, help="steps of the target")
    parser.add_argument("--small-steps", type=int, default=800, help="steps of the sibling")
    parser.add_argument("--batch", type=int, default=8, help="sequences per step")
    args = parser.parse_args()
    torch.manual_seed(0)

    known = args.out / "target" / "tokenizer.json"
    text = corpus(known if known.exists() else None)
    print(
        f"{len(text.training)} training tokens, {len(text.held_out)} held out ({text.held_out_bytes} bytes)"
    )

    teacher = None
    for name, steps in (("target", args.steps), ("small", args.small_steps)):
        if not (args.out / name).exists():
            model = build(SHAPES[name])
            fit(
                model, text.training, Length(steps, args.batch), lambda step: print(step, flush=True), teacher
            )
            bits = bits_per_byte(model, text.held_out, text.held_out_bytes)
            print(f"{name}: {bits:.4f} bits per byte on held-out files", flush=True)
            save(model, text.tokenizer, args.out / name, card(steps, args.batch, bits))
        teacher = load(args.out / name)


if __name__ == "__main__":
    main()
