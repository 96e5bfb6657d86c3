"""What a figure of record is, and the numbers that stand beside it.

A small model's greedy text falls into loops, and loops flatter every drafter. So a figure counts only
over enough held-out prompts, greedy for few tokens, and with few repeated 8-grams.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from qspec_decode.stats import SpecDecodingStats

MIN_PROMPTS = 16
MAX_GREEDY_TOKENS = 48
MAX_REPEATED_SHARE = 0.10


def repeated_8gram_share(token_ids: Iterable[Sequence[int]]) -> float:
    """Share of the 8-grams of all rows that stood before in their row; 0 where there are none."""
    total = distinct = 0
    for row in token_ids:
        grams = [tuple(row[i : i + 8]) for i in range(len(row) - 7)]
        total += len(grams)
        distinct += len(set(grams))
    return (total - distinct) / total if total else 0.0


def why_not_of_record(num_prompts: int, temperature: float, max_new_tokens: int, repeated: float) -> str:
    """Why a figure does not count; empty if it does."""
    reasons = []
    if num_prompts < MIN_PROMPTS:
        reasons.append(f"{num_prompts} of the {MIN_PROMPTS} prompts it takes")
    if temperature == 0 and max_new_tokens > MAX_GREEDY_TOKENS:
        reasons.append(f"{max_new_tokens} greedy tokens, at most {MAX_GREEDY_TOKENS} count")
    if repeated > MAX_REPEATED_SHARE:
        reasons.append(f"{repeated:.0%} repeated 8-grams, at most {MAX_REPEATED_SHARE:.0%} count")
    return "; ".join(reasons)


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
