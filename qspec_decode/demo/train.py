"""Train the bundled demo checkpoints on the Python standard library's own source.

Two Llama-layout models share one byte-level BPE tokenizer of 4,096 entries: `target` (6.75M
parameters, 12.9 MiB in bf16) and `small` (0.7M), which drafts for it at the lowest level.
Both are written as ordinary Hugging Face directories. One file in `HELD_OUT_SHARE`,
chosen by a hash of its path, is never trained on; bits per byte are reported on those files.

    python -m qspec_decode.demo.train --out demo-checkpoints

needs the extra `hf`. On two CPU cores the target takes about 40 minutes and the sibling, which also learns
from the target's predictions, about 10. A checkpoint that is already there is kept.
"""

import argparse
import hashlib
import json
import math
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F

VOCAB_SIZE = 4096
EOS = "<|endoftext|>"
SEQUENCE_LENGTH = 512
HELD_OUT_SHARE = 40

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
}


def source_files() -> tuple[list[Path], list[Path]]:
    """Standard-library sources as (training files, held-out files), each sorted by path.

    A file is held out when the SHA-256 of its path below the library starts with a number
    divisible by `HELD_OUT_SHARE`, so the split is the same on every machine with one version of Python.
    """
    root = Path(sysconfig.get_path("stdlib"))
    training, held_out = [], []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith("site-packages/"):
            continue
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        (held_out if digest % HELD_OUT_SHARE == 0 else training).append(path)
    return training, held_out


def read(paths: list[Path]) -> list[str]:
    """The files' texts, leaving out the few that are not UTF-8 or hold almost nothing."""
    texts = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if len(text) > 200:
            texts.append(text)
    return texts


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: any text round-trips, there is no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one stream of ids, each followed by the end-of-text id."""
    eos = tokenizer.token_to_id(EOS)
    stream = [id for text in tokenizer.encode_batch(texts) for id in [*text.ids, eos]]
    return np.array(stream, dtype=np.int64)


def batches(stream: np.ndarray, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Shuffled windows of SEQUENCE_LENGTH + 1 ids, a new offset and order every pass."""
    rng = np.random.default_rng(seed)
    while True:
        starts = np.arange(rng.integers(SEQUENCE_LENGTH), len(stream) - SEQUENCE_LENGTH - 1, SEQUENCE_LENGTH)
        rng.shuffle(starts)
        for i in range(0, len(starts) - batch + 1, batch):
            rows = [stream[s : s + SEQUENCE_LENGTH + 1] for s in starts[i : i + batch]]
            yield torch.from_numpy(np.stack(rows))


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
    for start in range(0, len(stream) - 1, SEQUENCE_LENGTH):
        ids = torch.from_numpy(stream[start : start + SEQUENCE_LENGTH + 1])[None]
        logits = model(input_ids=ids[:, :-1]).logits.float()
        nats += F.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
    model.train()
    return nats / math.log(2) / num_bytes


def fit(
    model: Any,
    stream: np.ndarray,
    steps: int,
    batch: int,
    teacher: Any | None = None,
    seed: int = 0,
) -> None:
    """Train in place: AdamW with warm-up, then a cosine down to 2 %, as large models are trained.

    With a teacher the loss is the mean of the usual cross-entropy and the teacher's:
    a drafter is worth what it agrees with its target, not what it knows of the data.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    # Muon learns faster, but from weights of so flat a spectrum that rounding them to four bits changes
    # twice as many tokens as it does in models of practice
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=2e-3,
        betas=(0.9, 0.95),
    )

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / 60)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    model.train()
    started = time.monotonic()
    for step, ids in zip(range(steps), batches(stream, batch, seed), strict=False):
        inputs, labels = ids[:, :-1], ids[:, 1:].reshape(-1)
        soft = None
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=inputs).logits
            if teacher is not None:
                with torch.no_grad():
                    soft = teacher(input_ids=inputs).logits.float().softmax(-1)
        logits = logits.float().reshape(-1, VOCAB_SIZE)
        loss = F.cross_entropy(logits, labels)
        if soft is not None:
            loss = 0.5 * loss + 0.5 * F.cross_entropy(logits, soft.reshape(-1, VOCAB_SIZE))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        model.zero_grad(set_to_none=True)
        if step % 20 == 0:
            rate_now = (step + 1) * ids.numel() / (time.monotonic() - started)
            print(f"step {step:5d}  loss {loss.item():.3f}  {rate_now:.0f} tokens/s", flush=True)


def save(model: Any, tokenizer: Tokenizer, out: Path, card: dict[str, object]) -> None:
    """Write a bf16 Hugging Face directory with a card of how it came about; it appears when complete."""
    partial = out.with_name(out.name + ".partial")
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


def main() -> None:
    """Train tokenizer, target and sibling."""
    parser = argparse.ArgumentParser(description="Train the bundled demo checkpoints.")
    parser.add_argument("--out", type=Path, required=True, help="directory for both checkpoints")
    parser.add_argument("--steps", type=int, default=2800, help="steps of the target")
    parser.add_argument("--small-steps", type=int, default=800, help="steps of the sibling")
    parser.add_argument("--batch", type=int, default=8, help="sequences per step")
    args = parser.parse_args()
    torch.manual_seed(0)

    training, held_out = source_files()
    train_texts, held_texts = read(training), read(held_out)
    known = args.out / "target" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(known)) if known.exists() else train_tokenizer(train_texts)
    stream, held_stream = encode(tokenizer, train_texts), encode(tokenizer, held_texts)
    held_bytes = sum(len(text.encode()) for text in held_texts)
    print(f"{len(stream)} training tokens, {len(held_stream)} held out ({held_bytes} bytes)")

    teacher = None
    for name, steps in (("target", args.steps), ("small", args.small_steps)):
        if (args.out / name).exists():
            teacher = load(args.out / name)
            continue
        model = build(SHAPES[name])
        fit(model, stream, steps, args.batch, teacher)
        bits = bits_per_byte(model, held_stream, held_bytes)
        print(f"{name}: {bits:.4f} bits per byte on held-out files", flush=True)
        card = {
            "data": f"Python {sysconfig.get_python_version()} standard library (PSF licence)",
            "steps": steps,
            "batch": args.batch,
            "sequence_length": SEQUENCE_LENGTH,
            "held_out_bits_per_byte": round(bits, 4),
        }
        save(model, tokenizer, args.out / name, card)
        teacher = load(args.out / name)


if __name__ == "__main__":
    main()
