"""What `qspec bench decode` does: everyone decodes the same prompts in turn, and passes are timed apart."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qspec_decode import config as configs
from qspec_decode.bench import record
from qspec_decode.bench.agreement import Agreement
from qspec_decode.bench.contenders import LADDERS, Contender
from qspec_decode.bench.document import run_document
from qspec_decode.bench.entrants import Entrant, Ours, forks, gap_at, parse_ladders, rows_of_turn, with_counts
from qspec_decode.bench.explain import Costs, kinds_of
from qspec_decode.bench.facts import facts
from qspec_decode.bench.passes import MAX_WIDTH, Warm, outside_kernels
from qspec_decode.bench.peaks import Peak, Peaks, rotation_bytes
from qspec_decode.bench.turns import take_turns
from qspec_decode.demo import run
from qspec_decode.demo.prompts import read
from qspec_decode.demo.widen import write_checkpoint
from qspec_decode.load import load, load_tokenizer
from qspec_decode.model import Transformer
from qspec_decode.output import DecodingOutput
from qspec_kernels import UsageError, isa

MIN_CALLS = 3
PASS_SECONDS = 0.6
# of a fork's two tokens; each takes a pass over the text before it
MAX_GAPS = 8
# whose plain decoding a peer is compared with
_COUNTERPARTS = {"bf16": "bf16", "q4_0": "w4a16"}


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
        base = configs.resolve(self.model_name)
        if self.model_name != "demo" or self.scale == "none":
            return base
        out = scratch / self.scale
        return out if out.exists() else write_checkpoint(base, self.scale, out)


@dataclass(frozen=True)
class Settings:
    """What is run.

    Parameters
    ----------
    counts
        K of the first draft level, one run each; empty for each ladder's default.
    """

    batches: tuple[int, ...] = (1,)
    ladders: tuple[Contender, ...] = LADDERS
    counts: tuple[int, ...] = ()
    max_new_tokens: int = record.MAX_GREEDY_TOKENS


def prepare(
    model: str, scale: str, num_prompts: int | None, max_new_tokens: int, say: Callable[[str], None]
) -> Subject:
    """Load the demo, widened, or another model as it is.

    Raises
    ------
    UsageError
        More prompts than there are, or more tokens than the model has positions.
    """
    if model == "demo":
        demo = run.prepare(scale, num_prompts, max_new_tokens, say)
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
    loaded = load(model, run.PRECISIONS)
    room = loaded.max_positions - max(map(len, ids))
    if not 2 <= max_new_tokens <= room:
        raise UsageError(f"--max-new-tokens is {max_new_tokens}, expected 2 to {room}")
    return Subject(model, Path(model).name, loaded, None, ids[:num_prompts], [], 0.0)


def choose_ladders(subject: Subject, text: str | None) -> tuple[Contender, ...]:
    """Those that were named, else all of the demo's that the subject can run."""
    if text is not None:
        return tuple(parse_ladders(text, subject.model.precisions, subject.small is not None))
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
        "batches": batches,
        "agreement": [one.to_dict() for one in subject.agreements],
    }


def entrants(subject: Subject, settings: Settings) -> list[Ours]:
    """Plain decoding in every precision, then every ladder with every K."""
    plain = [Ours(Contender(name), subject.model) for name in subject.model.precisions if name != "fp32"]
    return plain + [
        Ours(contender, subject.model, subject.small, k)
        for contender in settings.ladders
        for k in with_counts(contender, settings.counts)
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
    subject = bench.subject
    ours = entrants(subject, bench.settings)
    bench.say(f"batch {batch}: passes alone")
    rows = rows_of_turn(subject.prompts, batch, 0)
    models = {"target": Warm(subject.model, "bf16", rows, position)}
    if subject.small is not None:
        models["small"] = Warm(subject.small, "bf16", rows, position)
    costs = Costs.measure(models, kinds_of(ours), PASS_SECONDS, bench.reading)
    plain_steps = [one.steps[0][0] for one in ours if one.is_plain]
    outside = outside_kernels(models["target"], plain_steps, PASS_SECONDS)
    del models

    everyone: list[Entrant] = [*ours, *bench.peers]
    outputs = _decode_in_turns(bench, everyone, batch)
    plain = {one.weights: out for one, out in zip(ours, outputs, strict=False) if one.is_plain}
    runs = []
    for one, found in zip(everyone, outputs, strict=True):
        document = _run(subject, one, found, plain)
        if isinstance(one, Ours) and not one.is_plain:
            levels = record.merge([out.levels for out in found])
            document |= costs.explain(one.steps, levels, _num_decoded(found))
            document |= _held_against(document)
        runs.append(document)
    return {
        "batch": batch,
        "position": position,
        "read_bandwidth": costs.bandwidth and asdict(costs.bandwidth),
        "passes": costs.to_list({"target": subject.model, "small": subject.small}),
        "outside_kernels": outside,
        "runs": runs,
    }


def _decode_in_turns(bench: _Bench, everyone: Sequence[Entrant], batch: int) -> list[list[DecodingOutput]]:
    """What everyone decoded, call by call; all prompts are used, in at least `MIN_CALLS` calls."""
    subject, settings, say = bench.subject, bench.settings, bench.say
    num_calls = max(MIN_CALLS, -(-len(subject.prompts) // batch))
    say(f"batch {batch}: warming up")
    for one in everyone:
        one.decode(rows_of_turn(subject.prompts, batch, 0), min(3, settings.max_new_tokens))
    outputs: list[list[DecodingOutput]] = [[] for _ in everyone]
    for call, index in take_turns(range(len(everyone)), num_calls):
        one = everyone[index]
        say(f"batch {batch}, call {call + 1} of {num_calls}: {one.name}, {one.weights}")
        rows = rows_of_turn(subject.prompts, batch, call)
        outputs[index].append(one.decode(rows, settings.max_new_tokens))
    return outputs


def _run(
    subject: Subject,
    one: Entrant,
    outputs: list[DecodingOutput],
    plain: dict[str, list[DecodingOutput]],
) -> dict[str, Any]:
    """The document of one entrant: its rates, its text held against plain decoding's, whether it counts."""
    counterpart = _COUNTERPARTS.get(one.weights, one.weights)
    baseline = plain[counterpart]
    drafts = one.contender.drafts if isinstance(one, Ours) else ()
    document = run_document(
        outputs, baseline, drafts=drafts, temperature=0.0, decode=None, load_seconds=subject.load_seconds
    )
    rates = record.spread([out.tokens_per_second for out in outputs])
    comparable = counterpart == one.weights
    found = list(forks(baseline, outputs)) if comparable else []
    # rows beyond the last prompt repeat the first ones, and count once
    counted = document | {"token_ids": document["token_ids"][: len(subject.prompts)]}
    if not isinstance(one, Ours):
        # how fast another program is does not hang on whether its text is ours
        counted["lossless_equal"] = True
    reason = record.why_not_of_record(counted, subject.scale)
    return document | {
        "name": one.name,
        "title": one.contender.title if isinstance(one, Ours) else one.name,
        "weights": one.weights,
        "peer": not isinstance(one, Ours),
        "num_speculative_tokens": list(one.num_speculative_tokens) if isinstance(one, Ours) else [],
        "baseline": counterpart,
        "lossless_equal": document["lossless_equal"] if comparable else None,
        "tokens_per_second_quartiles": [rates.low, rates.high],
        "step_seconds": statistics.median(
            out.decode_seconds / max(1, out.num_target_steps) for out in outputs
        ),
        "forks": [
            {"call": call, "row": row, "position": position}
            | ({"gap": _gap(subject.model, counterpart, baseline, outputs, fork)} if n < MAX_GAPS else {})
            for n, fork in enumerate(found)
            for call, row, position in [fork]
        ],
        "of_record": not reason,
        "not_of_record_because": reason,
    }


def _gap(
    model: Transformer,
    precision: str,
    baseline: Sequence[DecodingOutput],
    outputs: Sequence[DecodingOutput],
    fork: tuple[int, int, int],
) -> float | None:
    """By how much the model prefers its own token where another one stands; None behind the shorter text."""
    call, row, position = fork
    expected, found = baseline[call].token_ids[row], outputs[call].token_ids[row]
    if position >= min(len(expected), len(found)):
        return None
    text = baseline[call].sequences[row].tolist()
    before = text[: len(text) - len(expected) + position]
    return gap_at(model, precision, before, (expected[position], found[position]))


def _num_decoded(outputs: Sequence[DecodingOutput]) -> int:
    return sum(out.num_tokens - len(out.token_ids) for out in outputs)


def _held_against(document: dict[str, Any]) -> dict[str, Any]:
    measured, predicted = document["speedup"], document["predicted_speedup"]
    return {"measured_over_predicted": measured / predicted if measured and predicted else None}
