"""Who decodes in `qspec bench decode`: plain decoding, ladders and other programs, all asked in one way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from qspec_decode.bench.agreement import Voice
from qspec_decode.bench.contenders import Contender, small_precision
from qspec_decode.bench.passes import Pass
from qspec_decode.generate import generate
from qspec_decode.model import Transformer
from qspec_decode.output import DecodingOutput
from qspec_decode.precision import canonical
from qspec_decode.protocol import Model
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculate import speculate
from qspec_decode.speculative_config import Drafting, SpeculativeConfig
from qspec_kernels import UsageError


@runtime_checkable
class Entrant(Protocol):
    """Decodes greedily, a batch at a time.

    `weights` says what the target's matrices are held in, as "bf16" or "q4_0".
    """

    @property
    def name(self) -> str:
        """As tables and documents call it."""
        ...

    @property
    def weights(self) -> str:
        """What the target's matrices are held in."""
        ...

    def decode(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> DecodingOutput:
        """Exactly so many new tokens of every prompt; end-of-text ids end nothing."""
        ...


@dataclass(frozen=True)
class Ours:
    """A ladder, or plain decoding.

    Parameters
    ----------
    small
        What drafts called "small" and "small:precision" stand for, if any.
    num_speculative_tokens
        K per level; empty for plain decoding.
    ends_early
        Whether a round drafts only as many as are likely to stand.
    """

    contender: Contender
    model: Model
    small: Model | None = None
    num_speculative_tokens: tuple[int, ...] = ()
    ends_early: bool = False

    @property
    def name(self) -> str:
        """The ladder as people write it, with K; "K<=" where drafting may end before that."""
        counts = ",".join(map(str, self.num_speculative_tokens))
        sign = "<=" if self.ends_early else "="
        return f"{self.contender.title}, K{sign}{counts}" if counts else self.contender.title

    @property
    def weights(self) -> str:
        """The target's precision."""
        return self.contender.target

    @property
    def is_plain(self) -> bool:
        """Whether nothing drafts."""
        return not self.contender.drafts

    @property
    def steps(self) -> list[list[Pass]]:
        """Per level from the target down, its passes that verify 0, 1, 2, ... drafts; none of a table."""
        target = canonical(self.contender.target)
        counts = (*self.num_speculative_tokens, 0)
        levels = []
        for depth, (name, k) in enumerate(zip((target, *self.contender.drafts), counts, strict=True)):
            widths = range(1, k + 2)
            if name == "ngram":
                levels.append([])
            elif precision := small_precision(name):
                # behind drafts that all stood it first reads the last of them, in a cache of its own
                widths = range(1, max(2, k + 1) + 1)
                levels.append([Pass("small", precision, width, draft=True) for width in widths])
            else:
                drafts = depth > 0 and canonical(name) != target
                levels.append([Pass("target", canonical(name), width, draft=drafts) for width in widths])
        return levels

    def decode(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> DecodingOutput:
        """By `generate` or `speculate`."""
        sampling = SamplingParams(max_new_tokens=max_new_tokens, eos_token_id=())
        target = self.contender.target
        if not self.contender.drafts:
            return generate(self.model, prompts, target=target, sampling=sampling)
        drafts = self.contender.levels(self.small)
        # with a K alone every round would draft K
        config = SpeculativeConfig(None if self.ends_early else self.num_speculative_tokens)
        return speculate(self.model, prompts, target=target, draft=drafts, sampling=sampling, config=config)


def parse_ladders(text: str, precisions: Sequence[str], of_small: Sequence[str]) -> list[Contender]:
    """The ladders of "bf16<-mxfp4;bf16<-mxfp4<-small:mxfp4".

    Parameters
    ----------
    precisions, of_small
        Those that the model has, and those of the model called "small"; none if there is no such model.

    Raises
    ------
    UsageError
        A ladder without a draft, or a level that there is not.
    """
    ladders = []
    for part in filter(None, map(str.strip, text.split(";"))):
        target, *drafts = (name.strip() for name in part.split("<-"))
        if not drafts:
            raise UsageError(
                f"--ladders names {part!r}, which has no draft",
                "Write target<-draft, as in 'bf16<-mxfp4;bf16<-mxfp4<-small'. Plain decoding always runs.",
            )
        for depth, name in enumerate((target, *drafts)):
            own = small_precision(name)
            is_other = depth > 0 and (name == "ngram" or own in of_small)
            if name == "ngram" and depth != len(drafts):
                raise UsageError(
                    f"--ladders has ngram in {part!r}; expected it as the last draft",
                    "It drafts from the tokens alone, so nothing can draft for it.",
                )
            if not is_other and (own is not None or canonical(name) not in precisions):
                small = f" small, small:{', small:'.join(of_small)}," if of_small else ""
                raise UsageError(
                    f"--ladders has {name!r} in {part!r}; expected one of {', '.join(precisions)}",
                    f"As a draft also{small} mxfp4 or ngram. The sibling small is the demo model's.",
                )
        ladders.append(Contender(target, tuple(drafts)))
    return ladders


def with_counts(contender: Contender, counts: Sequence[int | None], batch_size: int = 1) -> list[Drafting]:
    """Every K to run a ladder with: of its first level as given, of those below it the default.

    None, or nothing given, is what `speculate` does where nothing is said.
    """
    below = contender.num_speculative_tokens[1:]
    return [
        contender.drafting(greedy=True, batch_size=batch_size) if k is None else Drafting([k, *below])
        for k in counts or (None,)
    ]


def rows_of_turn(prompts: Sequence[list[int]], batch: int, turn: int) -> list[list[int]]:
    """The prompts of one call; after the last one the first follows again."""
    return [prompts[(turn * batch + row) % len(prompts)] for row in range(batch)]


def forks(
    reference: Sequence[DecodingOutput], outputs: Sequence[DecodingOutput]
) -> Iterator[tuple[int, int, int]]:
    """(call, row, position) of the first token of every row that is not the reference's."""
    for call, (expected, found) in enumerate(zip(reference, outputs, strict=True)):
        for row, pair in enumerate(zip(expected.token_ids, found.token_ids, strict=True)):
            at = next((i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), None)
            if at is None and len(pair[0]) != len(pair[1]):
                at = min(map(len, pair))
            if at is not None:
                yield call, row, at


def gap_at(model: Transformer, precision: str, text: Sequence[int], tokens: tuple[int, int]) -> float:
    """How much more probable the model finds the first of two next tokens: the difference of their logits."""
    logits = Voice(model, precision, precision).logits(text)[-1]
    return float(logits[tokens[0]] - logits[tokens[1]])


def peer_output(
    token_ids: list[list[int]], reference: str, prefill_seconds: float, decode_seconds: float
) -> DecodingOutput:
    """What another program decoded, in the form of our own results."""
    return DecodingOutput(
        sequences=[],
        token_ids=token_ids,
        finish_reasons=["length"] * len(token_ids),
        lossless=True,
        reference=reference,
        seeds=[],
        num_target_steps=len(token_ids[0]) - 1,
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
    )
