"""What a figure of record is, and the numbers that stand beside it.

A small model's greedy text falls into loops, and loops flatter every drafter. So a figure counts only
over enough held-out prompts, greedy for few tokens, and with few repeated 8-grams.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from qspec_decode.stats import SpecDecodingStats

MIN_PROMPTS = 16
MIN_TOKENS = 16
MAX_GREEDY_TOKENS = 48
MAX_REPEATED_SHARE = 0.10
TEMPERATURE = 0.8


def repeated_8gram_share(token_ids: Iterable[Sequence[int]]) -> float:
    """Share of the 8-grams of all rows that stood before in their row; 0 where there are none."""
    total = distinct = 0
    for row in token_ids:
        grams = [tuple(row[i : i + 8]) for i in range(len(row) - 7)]
        total += len(grams)
        distinct += len(set(grams))
    return (total - distinct) / total if total else 0.0


def why_not_of_record(run: Mapping[str, Any], scale: str) -> str:
    """Why the figures of a run do not count; empty if they do.

    Parameters
    ----------
    run
        As `document.run_document` describes it, with a baseline.
    scale
        What the model was widened to, or "none".
    """
    lengths = [len(row) for row in run["token_ids"]]
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    temperature, repeated = run["temperature"], run["repeated_8gram_share"]
    greedy = temperature == 0
    few, many = MIN_TOKENS, MAX_GREEDY_TOKENS
    reasons = [
        (len(lengths) < MIN_PROMPTS, f"{len(lengths)} of the {MIN_PROMPTS} prompts it takes"),
        (scale == "none", "scale none fits in the processor's caches, as no real model does"),
        (shortest < few, f"{shortest} new tokens of a prompt, too few to time, at least {few} count"),
        (greedy and longest > many, f"{longest} greedy tokens, at most {many} count"),
        (not greedy and temperature != TEMPERATURE, f"sampled at {temperature}, {TEMPERATURE} counts"),
        (
            repeated > MAX_REPEATED_SHARE,
            f"{repeated:.1%} repeated 8-grams, at most {MAX_REPEATED_SHARE:.0%} count",
        ),
        (greedy and not run["lossless_equal"], "the greedy text is not plain decoding's"),
    ]
    return "; ".join(reason for holds, reason in reasons if holds)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some measurements; of one measurement all three are it."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def merge(runs: Sequence[Sequence[SpecDecodingStats]]) -> list[SpecDecodingStats]:
    """Statistics of several calls of one ladder, added up level by level."""
    return [_sum(levels) for levels in zip(*runs, strict=True)]


def _sum(stats: Sequence[SpecDecodingStats]) -> SpecDecodingStats:
    def per_position(name: str) -> list[int]:
        return [sum(counts) for counts in zip_longest(*(getattr(s, name) for s in stats), fillvalue=0)]

    return SpecDecodingStats(
        name=stats[0].name,
        num_drafts=sum(s.num_drafts for s in stats),
        num_draft_tokens=sum(s.num_draft_tokens for s in stats),
        num_accepted_tokens=sum(s.num_accepted_tokens for s in stats),
        num_refused=sum(s.num_refused for s in stats),
        num_accepted_tokens_per_pos=per_position("num_accepted_tokens_per_pos"),
        num_draft_tokens_per_pos=per_position("num_draft_tokens_per_pos"),
        draft_time=sum(s.draft_time for s in stats),
        verify_time=sum(s.verify_time for s in stats),
    )
