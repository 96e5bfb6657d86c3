"""What `qspec bench decode` does: everyone decodes the same prompts in turn, and passes are timed apart."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qspec_decode import config as configs
from qspec_decode.bench import record
from qspec_decode.bench.agreement import Agreement
from qspec_decode.bench.clock import Call, Clocked, Made, noted
from qspec_decode.bench.contenders import LADDERS, Contender
from qspec_decode.bench.entrants import Entrant, Ours, parse_ladders, rows_of_turn, with_counts
from qspec_decode.bench.explain import Costs, kinds_of
from qspec_decode.bench.facts import facts
from qspec_decode.bench.passes import MAX_WIDTH, Warm, outside_kernels
from qspec_decode.bench.peaks import Peak, Peaks, rotation_bytes
from qspec_decode.bench.runs import counterpart, entrant_document
from qspec_decode.bench.turns import take_turns
from qspec_decode.demo import run
from qspec_decode.demo.prompts import read
from qspec_decode.demo.widen import write_checkpoint
from qspec_decode.load import load, load_tokenizer
from qspec_decode.model import Transformer
from qspec_kernels import PackedWeight, UsageError, isa

MIN_CALLS = 3
PASS_SECONDS = 0.6
_WARM_TOKENS = 8


@dataclass(frozen=True)
class Subject:
    """Everything loaded, nothing measured yet.

    Parameters
    ----------
    model_name
        "demo", or the directory that was given.
    scale
        What the demo was widened to; "none" for the bundled size, and the directory's name for another model.
    small
        The demo's sibling; None for other models.
    prompts
        Ids of the held-out prompts.
    """

    model_name: str
    scale: str
    model: Transformer
    small: Transformer | None
    prompts: list[list[int]]
    agreements: list[Agreement]
    load_seconds: float

    @property
    def note(self) -> str:
        """What the text and the figures are, in plain words."""
        if self.model_name == "demo":
            return run.note(self.scale)
        return f"This is {self.model_name}. The prompts are Python source."

    def checkpoint(self, scratch: Path) -> Path:
        """The same weights as a checkpoint directory, for other programs."""
        return self._widened(self.model_name, scratch)

    def small_checkpoint(self, scratch: Path) -> Path | None:
        """The sibling's weights, likewise; None where there is none."""
        return None if self.small is None else self._widened("demo-small", scratch)

    def _widened(self, name: str, scratch: Path) -> Path:
        base = configs.resolve(name)
        if self.model_name != "demo" or self.scale == "none":
            return base
        out = scratch / f"{name}-{self.scale}"
        return out if out.exists() else write_checkpoint(base, self.scale, out)


@dataclass(frozen=True)
class Settings:
    """What is run.

    Parameters
    ----------
    counts
        K of the first draft level, one run each; None, or nothing, for what `speculate` does by itself.
    """

    batches: tuple[int, ...] = (1,)
    ladders: tuple[Contender, ...] = LADDERS
    counts: tuple[int | None, ...] = ()
    max_new_tokens: int = record.MAX_GREEDY_TOKENS


def prepare(
    model: str,
    scale: str,
    num_prompts: int | None,
    max_new_tokens: int,
    say: Callable[[str], None],
    *,
    quant_lm_head: bool = True,
) -> Subject:
    """Load the demo, widened, or another model as it is.

    `quant_lm_head` holds the output matrix of int4 weights in int4, as llama.cpp's Q4_0 file does.

    Raises
    ------
    UsageError
        More prompts than there are, or more tokens than the model has positions.
    """
    heads = ("w4a16",) if quant_lm_head else ()
    if model == "demo":
        demo = run.prepare(scale, num_prompts, max_new_tokens, say, quant_lm_head=heads)
        arena = demo.arena
        return Subject(
            model, scale, arena.model, arena.small, demo.prompts, demo.agreements, demo.load_seconds
        )
    tokenizer = load_tokenizer(model)
    ids = [tokenizer.encode(prompt.text) for prompt in read()]
    if num_prompts is not None and not 1 <= num_prompts <= len(ids):
        raise UsageError(
            f"--prompts is {num_prompts}, expected 1 to {len(ids)}, the held-out prompts there are"
        )
    loaded = load(model, run.PRECISIONS, quant_lm_head=heads)
    room = loaded.max_positions - max(map(len, ids))
    if not 2 <= max_new_tokens <= room:
        raise UsageError(f"--max-new-tokens is {max_new_tokens}, expected 2 to {room}")
    return Subject(model, Path(model).name, loaded, None, ids[:num_prompts], [], 0.0)


def choose_ladders(subject: Subject, text: str | None) -> tuple[Contender, ...]:
    """Those that were named, else all of the demo's that the subject can run."""
    if text is not None:
        of_small = subject.small.precisions if subject.small is not None else ()
        return tuple(parse_ladders(text, subject.model.precisions, of_small))
    return tuple(one for one in LADDERS if subject.small is not None or "small" not in one.drafts)


def measure(
    subject: Subject, settings: Settings, peers: Sequence[Entrant], say: Callable[[str], None]
) -> dict[str, Any]:
    """Run everything; returns the document of `qspec bench decode --json`. `say` is told of every turn."""
    longest = max(map(len, subject.prompts))
    position = min(longest + settings.max_new_tokens // 2, subject.model.max_positions - MAX_WIDTH)
    reading = Peaks(rotation_bytes()).memory if isa() != "torch" else None
    batches = [
        _measure_batch(_Bench(subject, settings, peers, reading, say), batch, position)
        for batch in settings.batches
    ]
    return {
        "machine": facts(),
        "model": subject.model_name,
        "scale": subject.scale,
        "note": subject.note,
        "num_prompts": len(subject.prompts),
        "max_new_tokens": settings.max_new_tokens,
        "quant_lm_head": isinstance(subject.model.sets["int4"].head, PackedWeight),
        "batches": batches,
        "agreement": [one.to_dict() for one in subject.agreements],
    }


def entrants(subject: Subject, settings: Settings, made: list[Made], batch: int = 1) -> list[Ours]:
    """Plain decoding in every precision, then every ladder with every K; passes are noted in `made`."""
    model = Clocked(subject.model, "target", made)
    small = None if subject.small is None else Clocked(subject.small, "small", made)
    plain = [Ours(Contender(name), model) for name in subject.model.precisions if name != "fp32"]
    return plain + [
        Ours(contender, model, small, tuple(amount.num_speculative_tokens), amount.ends_early)
        for contender in settings.ladders
        for amount in with_counts(contender, settings.counts, batch)
    ]


@dataclass(frozen=True)
class _Bench:
    """What all batches share."""

    subject: Subject
    settings: Settings
    peers: Sequence[Entrant]
    reading: Peak | None
    say: Callable[[str], None]


def _measure_batch(bench: _Bench, batch: int, position: int) -> dict[str, Any]:
    subject, made = bench.subject, list[Made]()
    ours = entrants(subject, bench.settings, made, batch)
    bench.say(f"batch {batch}: passes alone")
    rows = rows_of_turn(subject.prompts, batch, 0)
    models = {"target": Warm(subject.model, "bf16", rows, position)}
    if subject.small is not None:
        models["small"] = Warm(subject.small, "bf16", rows, position)
    costs = Costs.measure(models, kinds_of(ours, batch), batch, PASS_SECONDS, bench.reading)
    plain_steps = [one.steps[0][0] for one in ours if one.is_plain]
    outside = outside_kernels(models["target"], plain_steps, PASS_SECONDS)
    del models

    everyone: list[Entrant] = [*ours, *bench.peers]
    calls = _decode_in_turns(bench, everyone, batch, made)
    plain = {one.weights: found for one, found in zip(ours, calls, strict=False) if one.is_plain}
    runs = []
    for one, found in zip(everyone, calls, strict=True):
        baseline = plain[counterpart(one)]
        document = entrant_document(
            one,
            [call.output for call in found],
            [call.output for call in baseline],
            subject.model,
            num_prompts=len(subject.prompts),
            scale=subject.scale,
            load_seconds=subject.load_seconds,
        )
        if isinstance(one, Ours):
            document |= costs.in_loop(found)
            if not one.is_plain:
                document |= costs.explain(one.steps, found, baseline)
        runs.append(document)
    return {
        "batch": batch,
        "position": position,
        "read_bandwidth": costs.bandwidth and asdict(costs.bandwidth),
        "passes": costs.to_list({"target": subject.model, "small": subject.small}),
        "outside_kernels": outside,
        "runs": runs,
    }


def _decode_in_turns(
    bench: _Bench, everyone: Sequence[Entrant], batch: int, made: list[Made]
) -> list[list[Call]]:
    """What everyone decoded, call by call; all prompts are used, in at least `MIN_CALLS` calls."""
    subject, settings, say = bench.subject, bench.settings, bench.say
    num_calls = max(MIN_CALLS, -(-len(subject.prompts) // batch))
    say(f"batch {batch}: warming up")
    # the beginnings of prompts do: all of many takes long
    beginnings = [row[:_WARM_TOKENS] for row in rows_of_turn(subject.prompts, batch, 0)]
    for one in everyone:
        one.decode(beginnings, min(3, settings.max_new_tokens))
    calls: list[list[Call]] = [[] for _ in everyone]
    for turn, index in take_turns(range(len(everyone)), num_calls):
        one = everyone[index]
        say(f"batch {batch}, call {turn + 1} of {num_calls}: {one.name}, {one.weights}")
        rows = rows_of_turn(subject.prompts, batch, turn)
        calls[index].append(noted(lambda one=one, rows=rows: one.decode(rows, settings.max_new_tokens), made))
    return calls
