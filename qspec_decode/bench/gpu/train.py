"""`qspec bench train`: a larger demo model, and how often drafts stand on text that it has not seen."""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from qspec_decode import config as configs
from qspec_decode import demo, tensors
from qspec_decode.bench import agreement
from qspec_decode.bench.agreement import Voice
from qspec_decode.bench.facts import facts
from qspec_decode.bench.gpu.acceptance import Pair, acceptance
from qspec_decode.demo import train
from qspec_decode.demo.corpus import EOS, SEQUENCE_LENGTH, Corpus, corpus, source_files, windows
from qspec_decode.demo.train import SHAPES, Length, Step
from qspec_decode.ladder import DraftModel
from qspec_decode.load import load
from qspec_decode.load_options import parse_device
from qspec_decode.progress import track
from qspec_decode.protocol import Model
from qspec_kernels import UsageError

PRECISIONS = ("bf16", "mxfp4a8", "w4a16", "w4a8", "w4a4")
PASSES = 8
"""Over the training files at most; text that was read four times hardly teaches more (arXiv 2305.16264)."""

# 64 of 512 tokens: shares near 0.9 are known to 0.002
WINDOWS = 64
_BATCH = {"cuda": 32, "cpu": 8}
_BYTES_PER_TOKEN = 3.35


@dataclass(frozen=True)
class Request:
    """What to train, and for how long.

    Parameters
    ----------
    minutes
        Of training at most; reading the text before it and measuring after it take a few more.
    size
        Of `demo.train.SHAPES`.
    out
        Directory of the checkpoint; None for one in the user's cache.
    device
        "cuda", "cpu"; None for the GPU, without which nothing is done.
    windows
        Pieces of held-out text that precisions are compared on.

    Raises
    ------
    UsageError
        For an unknown size, and for numbers that are not positive.
    """

    minutes: float = 10.0
    size: str = "large"
    out: Path | None = None
    device: str | None = None
    windows: int = WINDOWS

    def __post_init__(self) -> None:
        if not (0 < self.minutes < math.inf):
            raise UsageError(f"minutes is {self.minutes}; expected more than 0")
        if self.size not in SHAPES:
            raise UsageError(f"size is {self.size!r}; expected one of {', '.join(SHAPES)}")

    @property
    def directory(self) -> Path:
        """Where the checkpoint is, or will be."""
        if self.out is not None:
            return self.out
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "qspec" / "models" / f"demo-{self.size}"


def run(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """Train, unless the directory is there, and measure; the document of `--json`.

    Raises
    ------
    UsageError
        No GPU where none was said to be done without, or a directory that is no such checkpoint.
    """
    out = request.directory
    if out.exists() and not (out / "training.json").exists():
        raise UsageError(
            f"{out} exists and holds no checkpoint of `qspec bench train`",
            "--out names another directory, which need not exist.",
        )
    device = _device(request)
    say("reading the standard library ...")
    text = corpus(demo.path("target") / "tokenizer.json")
    training = None
    if out.exists():
        say(f"{out} is there already and is measured; another --out trains anew")
    else:
        training = _train(request, text, device, say)
    say("comparing precisions on held-out text ...")
    return {
        "command": "bench train",
        "machine": facts(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "size": request.size,
        "directory": str(out),
        "parameters": _parameters(out),
        "card": json.loads((out / "training.json").read_text()),
        "training": training,
        **measure(out, text, device, request.windows),
    }


def measure(directory: Path, text: Corpus, device: torch.device, count: int) -> dict[str, Any]:
    """Bits per byte of every precision, and how often drafts stand, on `count` held-out windows.

    `agreement` compares them with their target over the text itself, `acceptance` while some of it is gone on
    with.
    """
    model = load(directory, PRECISIONS, device=device)
    pieces = windows(text.held_out, count)
    own = {name: Voice(model, name, name, draft=True) for name in ("mxfp4", "w4a8", "w4a4")}
    small = [
        Voice(load(name, "bf16", device=device), "bf16", name)
        for name in ("demo", "demo-small")
        if configs.from_dir(configs.resolve(name)).vocabulary == model.vocabulary
    ]
    agreements = [
        *agreement.agreement(Voice(model, "bf16", "bf16"), [own["mxfp4"], *small], pieces),
        *agreement.agreement(Voice(model, "w4a16", "w4a16"), [own["w4a8"], own["w4a4"]], pieces),
    ]
    pairs = [
        Pair("bf16", "mxfp4", "mxfp4"),
        *(Pair("bf16", one.name, DraftModel(one.model, "bf16", one.name)) for one in small),
        *(Pair("w4a16", name, name) for name in ("w4a8", "w4a4")),
    ]
    bits = [
        {"precision": name, "bits_per_byte": bits_per_byte(model, name, text.tokenizer, pieces)}
        for name in PRECISIONS
    ]
    return {
        "num_windows": len(pieces),
        "precisions": bits,
        "agreement": [one.to_dict() for one in agreements],
        "acceptance": acceptance(model, pairs, pieces),
    }


def bits_per_byte(model: Model, precision: str, tokenizer: Tokenizer, pieces: Sequence[list[int]]) -> float:
    """Cross-entropy of the tokens behind the first of every piece, over the bytes that they stand for."""
    # a character of a token of such a tokenizer is a byte
    sizes = {id: 0 if token == EOS else len(token) for token, id in tokenizer.get_vocab().items()}
    voice, nats, num_bytes = Voice(model, precision, precision), 0.0, 0
    for piece in track(pieces, len(pieces), f"bits per byte of {precision}"):
        logits = voice.logits(piece)
        wanted = torch.tensor(piece[1:], device=logits.device)
        nats += F.cross_entropy(logits[:-1].float(), wanted, reduction="sum").item()
        num_bytes += sum(sizes[id] for id in piece[1:])
    return nats / math.log(2) / num_bytes


def _device(request: Request) -> torch.device:
    if request.device is not None:
        return parse_device(request.device)
    if torch.cuda.is_available():
        return parse_device("cuda")
    raise UsageError(
        f"PyTorch {torch.__version__} finds no GPU here; expected one: on this CPU as much training of "
        f"{request.size!r} takes about {_cpu_hours(request.size):.0f} hours",
        f"--device cpu trains on it all the same, as much as fits in --minutes; so do smaller models "
        f"(--size {' or '.join(name for name in SHAPES if name != request.size)}).",
    )


def _cpu_hours(size: str) -> float:
    """At the rate of a product of two matrices, 6 operations per parameter and token."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in train.build(SHAPES[size]).parameters())
    n = 1024
    a = torch.ones(n, n, dtype=torch.bfloat16)
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - began)
    tokens = PASSES * sum(path.stat().st_size for path in source_files()[0]) / _BYTES_PER_TOKEN
    return 6 * parameters * tokens / (2 * n**3 / best) / 3600


def _train(
    request: Request, text: Corpus, device: torch.device, say: Callable[[str], None]
) -> dict[str, Any]:
    out = request.directory
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = train.build(SHAPES[request.size]).to(device)
    batch = _BATCH[device.type]
    steps = max(1, PASSES * len(text.training) // (batch * SEQUENCE_LENGTH))
    length = Length(steps, batch, request.minutes * 60)
    say(f"training for {request.minutes:g} minutes or {steps} steps; Ctrl-C keeps what was learned")
    reports: list[Step] = []
    began = time.monotonic()
    try:
        taken = train.fit(model, text.training, length, reports.append)
        seconds = time.monotonic() - began
        bits = train.bits_per_byte(model, text.held_out, text.held_out_bytes)
    except KeyboardInterrupt:
        if reports:
            at_least = train.card(reports[-1].number, batch, None) | {"interrupted": True}
            train.save(model, text.tokenizer, out, at_least)
            say(f"interrupted; what was learned is in {out}, and another `qspec bench train` measures it")
        raise
    train.save(model, text.tokenizer, out, train.card(taken, batch, bits))
    tokens = taken * batch * SEQUENCE_LENGTH
    return {
        "seconds": seconds,
        "steps": taken,
        "passes": tokens / len(text.training),
        "tokens_per_second": tokens / seconds,
        "loss": [[one.number, one.loss] for one in reports],
    }


def _parameters(directory: Path) -> int:
    shapes = tensors.all_shapes(configs.from_dir(directory))
    return sum(math.prod(shape) for shape in shapes.values())
