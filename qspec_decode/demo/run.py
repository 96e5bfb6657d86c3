"""What `qspec demo` does: widen the bundled models, and let every ladder run against plain decoding.

The text is a small model's, the traffic and the arithmetic are those of a real one: the bundled model has
6.75 million parameters, and widening repeats them until it has a real model's shape.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qspec_decode.bench import agreement, bound, record
from qspec_decode.bench.agreement import Agreement, Voice
from qspec_decode.bench.contenders import LADDERS, Arena, Contender, Series, interleave, small_precision
from qspec_decode.bench.document import run_document
from qspec_decode.demo import prompts
from qspec_decode.demo.widen import widen
from qspec_decode.load import load, load_tokenizer
from qspec_decode.model import Transformer
from qspec_decode.output import Streamer
from qspec_decode.tokenizer import Tokenizer
from qspec_kernels import UsageError

PRECISIONS = ("bf16", "mxfp4a8", "w4a16")
SMALL_PRECISIONS = ("bf16", "mxfp4a8")
TEMPERATURES = (0.0, record.TEMPERATURE)
SHOWN = LADDERS[0]
"""The ladder whose text is streamed first."""


@dataclass(frozen=True)
class Demo:
    """Everything loaded, nothing measured yet.

    Parameters
    ----------
    scale
        "none", or a name from `widen_plan.SCALES`.
    arena
        The models at that scale.
    tokenizer
        Of both models.
    prompts
        Ids of the held-out prompts that will be used, all of them at most.
    agreements
        Every draft against its target on the prompts' text, measured before widening.
    load_seconds
        Loading and widening.
    """

    scale: str
    arena: Arena
    tokenizer: Tokenizer
    prompts: list[list[int]]
    agreements: list[Agreement]
    load_seconds: float


def prepare(
    scale: str,
    num_prompts: int | None,
    max_new_tokens: int,
    say: Callable[[str], None],
    *,
    quant_lm_head: Sequence[str] = (),
) -> Demo:
    """Check the options, load, compare precisions on held-out text, widen; `say` is told what comes next.

    `quant_lm_head` is that of `load`.

    Raises
    ------
    UsageError
        More prompts than there are, or more tokens than the model has positions.
    """
    tokenizer = load_tokenizer("demo")
    ids = [tokenizer.encode(prompt.text) for prompt in prompts.read()]
    if num_prompts is not None and not 1 <= num_prompts <= len(ids):
        raise UsageError(
            f"--prompts is {num_prompts}, expected 1 to {len(ids)}, the held-out prompts there are"
        )
    began = time.perf_counter()
    model, small = load("demo", PRECISIONS, quant_lm_head=quant_lm_head), load("demo-small", SMALL_PRECISIONS)
    room = model.max_positions - max(map(len, ids))
    if not 2 <= max_new_tokens <= room:
        raise UsageError(
            f"--max-new-tokens is {max_new_tokens}, expected 2 to {room}",
            f"The first token comes from the prefill, and the model has {model.max_positions} positions.",
        )
    load_seconds = time.perf_counter() - began
    say("comparing precisions on held-out text ...")
    agreements = _agreements(model, small, ids)
    began = time.perf_counter()
    if scale != "none":
        say(f"widening to {scale} ...")
        model, small = widen(model, scale), widen(small, scale)
    load_seconds += time.perf_counter() - began
    return Demo(
        scale, Arena(model, small, max_new_tokens), tokenizer, ids[:num_prompts], agreements, load_seconds
    )


def stream(demo: Demo, streamer: Streamer) -> None:
    """Decode the first prompt with the first ladder, greedily, into a streamer."""
    demo.arena.decode(SHOWN, demo.prompts[0], 0.0, streamer=streamer)


def measure(demo: Demo, deadline: float | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Run everything; returns the document of `qspec demo --json`.

    With a `deadline` (on `time.perf_counter`'s clock) no prompt is begun that would probably end after
    it, but one is always measured; without one all prompts of the demo are. `say` is told of every run.
    """

    def report(index: int, contender: Contender, temperature: float) -> None:
        kind = f"sampled at {temperature}" if temperature else "greedy"
        of = f" of {len(demo.prompts)}" if deadline is None else ""
        say(f"prompt {index + 1}{of}: {contender.title}, {kind}")

    say("warming up")
    warm = replace(demo.arena, max_new_tokens=3)
    interleave(warm.decode, LADDERS, (0.0,), demo.prompts[:1], lambda *_: None)
    series = interleave(demo.arena.decode, LADDERS, TEMPERATURES, _until(deadline, demo.prompts), report)
    return {
        "scale": demo.scale,
        "num_prompts": len(series[0].outputs),
        "max_new_tokens": demo.arena.max_new_tokens,
        "note": note(demo.scale),
        "runs": [_run(demo, s, series) for s in series if s.contender.drafts],
        "agreement": [a.to_dict() for a in demo.agreements],
    }


def note(scale: str) -> str:
    """What the text and the figures are, in plain words."""
    if scale == "none":
        return (
            "This is the bundled 6.75M-parameter model as it is: it fits in the processor's caches, so its "
            "speed says nothing about real models."
        )
    return (
        f"This is the bundled 6.75M-parameter model, widened to {scale}: the memory traffic and arithmetic "
        "of a real model of that size, the text of a small one."
    )


def _until(deadline: float | None, ids: Sequence[list[int]]) -> Iterator[list[int]]:
    """The prompts that can be run before the deadline if none takes longer than the slowest so far."""
    slowest = 0.0
    for prompt in ids:
        began = time.perf_counter()
        if deadline is not None and slowest and began + slowest > deadline:
            return
        yield prompt
        slowest = max(slowest, time.perf_counter() - began)


def _agreements(model: Transformer, small: Transformer, texts: list[list[int]]) -> list[Agreement]:
    """Of every draft that is a model, against the target it drafts for; widening changes none of it."""
    own = {name: Voice(model, name, name, draft=True) for name in ("mxfp4", "w4a8", "w4a4")}
    sibling = Voice(small, "bf16", "small")
    return [
        *agreement.agreement(Voice(model, "bf16", "bf16"), [own["mxfp4"], sibling], texts),
        *agreement.agreement(Voice(model, "w4a16", "w4a16"), [own["w4a8"], own["w4a4"]], texts),
    ]


def _run(demo: Demo, series: Series, everything: list[Series]) -> dict[str, Any]:
    contender, temperature = series.contender, series.temperature
    baseline = next(s for s in everything if (s.contender, s.temperature) == (contender.plain, temperature))
    document = run_document(
        series.outputs,
        baseline.outputs,
        drafts=contender.drafts,
        temperature=temperature,
        decode=demo.tokenizer.decode,
        load_seconds=demo.load_seconds,
    )
    levels, sizes = record.merge([out.levels for out in series.outputs]), _bytes_read(demo.arena, contender)
    steps, plain_steps = (sum(out.num_target_steps for out in s.outputs) for s in (series, baseline))
    reason = record.why_not_of_record(document, demo.scale)
    return document | {
        "title": contender.title,
        "bytes_per_pass": sizes,
        "bound": bound.byte_bound(steps, plain_steps, levels, sizes),
        "of_record": not reason,
        "not_of_record_because": reason,
    }


def _bytes_read(arena: Arena, contender: Contender) -> list[int]:
    """Per pass of the target and of each of its drafts."""
    sizes = [arena.model.bytes_per_pass(contender.target)]
    for name in contender.drafts:
        if name == "ngram":
            sizes.append(0)
        elif precision := small_precision(name):
            sizes.append(arena.small.bytes_per_pass(precision, draft_head=True))
        else:
            sizes.append(arena.model.bytes_per_pass(name, draft_head=True))
    return sizes
