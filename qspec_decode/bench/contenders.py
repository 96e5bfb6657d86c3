"""Who runs against whom: ladders, and plain decoding of the targets they share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from qspec_decode.generate import generate
from qspec_decode.ladder import Draft, DraftModel
from qspec_decode.model import Transformer
from qspec_decode.output import DecodingOutput, Streamer
from qspec_decode.precision import canonical
from qspec_decode.protocol import Model
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculate import speculate
from qspec_decode.speculative_config import Drafting, SpeculativeConfig, drafting


@dataclass(frozen=True)
class Contender:
    """A target precision and the drafts below it by name; none for plain decoding."""

    target: str
    drafts: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """As people write it: `bf16 <- mxfp4 <- small`."""
        return " <- ".join([self.target, *self.drafts]) if self.drafts else f"{self.target} alone"

    def levels(self, small: Model | None) -> list[Draft]:
        """Its drafts as `speculate` takes them; `small` is what "small" and "small:precision" stand for."""
        named = ((name, small_precision(name)) for name in self.drafts)
        return [name if small is None or own is None else DraftModel(small, own) for name, own in named]

    @property
    def plain(self) -> "Contender":
        """The baseline: the same target without drafts."""
        return Contender(self.target)

    @property
    def num_speculative_tokens(self) -> list[int]:
        """K per level where drafting never ends early."""
        return self.drafting(greedy=True, fixed=True).num_speculative_tokens

    def drafting(self, *, greedy: bool, fixed: bool = False, batch_size: int = 1) -> Drafting:
        """How much is drafted where nothing is said about it."""
        config, target = SpeculativeConfig(), canonical(self.target)
        return drafting(config, target, self.drafts, greedy=greedy, fixed=fixed, batch_size=batch_size)


LADDERS = (
    Contender("bf16", ("mxfp4",)),
    Contender("bf16", ("mxfp4", "small")),
    Contender("bf16", ("mxfp4", "ngram")),
    Contender("bf16", ("small",)),
    Contender("bf16", ("ngram",)),
    Contender("w4a16", ("w4a8",)),
    Contender("w4a16", ("w4a4",)),
)


def small_precision(name: str) -> str | None:
    """What the small model decodes with as the draft `name`: "small", in bf16, or as "small:mxfp4" says.

    None of every other draft.

    Examples
    --------
    >>> small_precision("small:mxfp4"), small_precision("small"), small_precision("mxfp4")
    ('mxfp4a8', 'bf16', None)
    """
    first, _, precision = name.partition(":")
    return canonical(precision or "bf16") if first == "small" else None


@dataclass(frozen=True)
class Arena:
    """The models all contenders share, and how long they run.

    Parameters
    ----------
    model
        Holds every precision that a contender names.
    small
        What drafts called "small" and "small:precision" stand for.
    max_new_tokens
        Tokens of each run; end-of-text ids do not end it, so that all runs are equally long.
    """

    model: Transformer
    small: Transformer
    max_new_tokens: int

    def decode(
        self,
        contender: Contender,
        prompt: Sequence[int],
        temperature: float,
        seed: int = 0,
        streamer: Streamer | None = None,
    ) -> DecodingOutput:
        """One prompt, alone in its batch."""
        sampling = SamplingParams(
            temperature=temperature, seed=[seed], max_new_tokens=self.max_new_tokens, eos_token_id=()
        )
        target = contender.target
        if not contender.drafts:
            return generate(self.model, [prompt], target=target, sampling=sampling, streamer=streamer)
        return speculate(
            self.model,
            [prompt],
            target=target,
            draft=contender.levels(self.small),
            sampling=sampling,
            streamer=streamer,
        )


@dataclass
class Series:
    """Everything one contender decoded at one temperature, prompt by prompt."""

    contender: Contender
    temperature: float
    outputs: list[DecodingOutput] = field(default_factory=list)


def interleave(
    decode: Callable[[Contender, Sequence[int], float, int], DecodingOutput],
    ladders: Sequence[Contender],
    temperatures: Sequence[float],
    prompts: Iterable[Sequence[int]],
    report: Callable[[int, Contender, float], None],
) -> list[Series]:
    """Run every ladder and the plain decoding of its target on every prompt.

    All take turns on a prompt before the next one comes, in an order that moves on with each prompt, so
    that a machine that slows down or speeds up meets all of them. Prompts are taken one by one: an iterable
    that stops early ends the measurement between two prompts. `decode` is `Arena.decode` or like it;
    `report` is told of every turn beforehand.
    """
    plain = list(dict.fromkeys(contender.plain for contender in ladders))
    series = [Series(c, t) for t in temperatures for c in (*plain, *ladders)]
    for index, prompt in enumerate(prompts):
        start = index % len(series)
        for turn in series[start:] + series[:start]:
            report(index, turn.contender, turn.temperature)
            turn.outputs.append(decode(turn.contender, prompt, turn.temperature, index))
    return series
