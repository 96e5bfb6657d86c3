"""The demo model on the device that is measured: what decodes, and forward passes that can be captured."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from qspec_decode.bench.contenders import Contender
from qspec_decode.bench.entrants import Ours, rows_of_turn
from qspec_decode.bench.gpu import timing
from qspec_decode.bench.gpu.transformers_peer import Compiled
from qspec_decode.bench.passes import MAX_WIDTH, Pass, Warm
from qspec_decode.bench.record import MAX_GREEDY_TOKENS
from qspec_decode.demo import prompts
from qspec_decode.demo.run import PRECISIONS
from qspec_decode.demo.widen import widen
from qspec_decode.generate import generate
from qspec_decode.load import load, load_tokenizer
from qspec_decode.model import Transformer
from qspec_decode.output import DecodingOutput
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculate import speculate
from qspec_decode.speculative_config import SpeculativeConfig

Decode = Callable[[Sequence[Sequence[int]], int], DecodingOutput]
"""(prompts, number of new tokens) -> what was decoded, greedily."""


@runtime_checkable
class Subject(Protocol):
    """What decodes; `Demo` is the real one.

    Parameters
    ----------
    prompts
        Ids of the held-out prompts.
    seconds
        That it took to make.
    """

    prompts: list[list[int]]
    seconds: float

    def decoder(self, contender: Contender, graphs: bool) -> Decode:
        """A ladder, or plain decoding."""
        ...

    def peer(self) -> Decode:
        """transformers on the same weights, compiled."""
        ...

    def steps(self, contender: Contender) -> list[list[Pass]]:
        """Per level from the target down, its passes that verify 0, 1, 2, ... drafts; none of a table."""
        ...

    def passes(self, kinds: Sequence[Pass], batch: int) -> list[timing.Contender]:
        """Forward passes over a warm cache."""
        ...

    def clear(self) -> None:
        """Give back the memory of captured rounds."""
        ...


@dataclass
class Demo:
    """The bundled model and its sibling on a device, as they are or widened."""

    model: Transformer
    small: Transformer
    prompts: list[list[int]]
    seconds: float

    def decoder(self, contender: Contender, graphs: bool) -> Decode:
        """By `generate` or `speculate`; end-of-text ids end nothing, so that all are equally long."""
        drafts = contender.levels(self.small)
        counts = contender.num_speculative_tokens if drafts else None
        config = SpeculativeConfig(counts, enforce_eager=not graphs)

        def decode(rows: Sequence[Sequence[int]], max_new_tokens: int) -> DecodingOutput:
            sampling = SamplingParams(max_new_tokens=max_new_tokens, eos_token_id=())
            target = contender.target
            if not drafts:
                return generate(self.model, rows, target=target, sampling=sampling, enforce_eager=not graphs)
            return speculate(self.model, rows, target=target, draft=drafts, sampling=sampling, config=config)

        return decode

    def peer(self) -> Decode:
        """transformers on the bf16 weights, which it shares."""
        return Compiled(self.model).decode

    def steps(self, contender: Contender) -> list[list[Pass]]:
        """As `entrants.Ours` knows them."""
        counts = tuple(contender.num_speculative_tokens) if contender.drafts else ()
        return Ours(contender, self.model, self.small, counts).steps

    def passes(self, kinds: Sequence[Pass], batch: int) -> list[timing.Contender]:
        """Behind the longest prompt and half of what is decoded; the bytes are those of the weights."""
        position = max(map(len, self.prompts)) + MAX_GREEDY_TOKENS // 2
        position = min(position, self.model.max_positions - MAX_WIDTH)
        models = {"target": self.model, "small": self.small}
        rows = rows_of_turn(self.prompts, batch, 0)
        warm = {
            owner: Warm(models[owner], "bf16", rows, position)
            for owner in dict.fromkeys(kind.owner for kind in kinds)
        }

        def contender(kind: Pass) -> timing.Contender:
            size = models[kind.owner].bytes_per_pass(kind.precision, draft_head=kind.draft)
            return timing.Contender(
                f"{kind.owner} {kind.precision}", "passes", f"{kind.width} x {batch}", kind.width * batch,
                lambda _: warm[kind.owner].forward(kind), 1, size, 0, lambda: None,
            )  # fmt: skip

        return list(map(contender, kinds))

    def clear(self) -> None:
        """Drop captured rounds with their caches."""
        if self.model.graphs is not None:
            self.model.graphs.clear()


def demo_at(scale: str, device: torch.device) -> Demo:
    """The demo on a device, widened to a scale; "none" leaves it as it is bundled."""
    began = time.perf_counter()
    tokenizer = load_tokenizer("demo")
    model, small = load("demo", PRECISIONS, device=device), load("demo-small", "bf16", device=device)
    if scale != "none":
        model, small = widen(model, scale), widen(small, scale)
    ids = [tokenizer.encode(prompt.text) for prompt in prompts.read()]
    return Demo(model, small, ids, time.perf_counter() - began)
