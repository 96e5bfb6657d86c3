"""The text that demo models learn from: the Python standard library's source, a fixed part of it held out."""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 4096
EOS = "<|endoftext|>"
SEQUENCE_LENGTH = 512
HELD_OUT_SHARE = 40


@dataclass(frozen=True)
class Corpus:
    """Training files and held-out files, each as one stream of ids.

    Parameters
    ----------
    tokenizer
        Its `VOCAB_SIZE` ids.
    training, held_out
        int64; every file is followed by the end-of-text id.
    held_out_bytes
        Bytes of the held-out files' text.
    """

    tokenizer: Tokenizer
    training: np.ndarray
    held_out: np.ndarray
    held_out_bytes: int


def corpus(known: Path | None = None) -> Corpus:
    """Read and encode everything.

    Parameters
    ----------
    known
        `tokenizer.json` of a checkpoint; None trains a tokenizer on the training files.
    """
    training, held_out = map(read, source_files())
    tokenizer = train_tokenizer(training) if known is None else Tokenizer.from_file(str(known))
    return Corpus(
        tokenizer,
        encode(tokenizer, training),
        encode(tokenizer, held_out),
        sum(len(text.encode()) for text in held_out),
    )


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


def windows(stream: np.ndarray, most: int) -> list[list[int]]:
    """At most so many pieces of SEQUENCE_LENGTH ids, disjoint and evenly spread."""
    starts = range(0, max(1, len(stream) - SEQUENCE_LENGTH + 1), SEQUENCE_LENGTH)
    chosen = starts[:: -(-len(starts) // most)]
    return [stream[start : start + SEQUENCE_LENGTH].tolist() for start in chosen]
