"""The cost model: what a ladder gains, from what single passes cost and how often drafts stand.

Time is passes and nothing else here: a ladder that is slower than this says spends time beside them.
"""

from collections.abc import Sequence
from itertools import pairwise

from qspec_decode.stats import SpecDecodingStats


def expected_tokens(alpha: float, k: int) -> float:
    """Tokens that a round of `k` drafts commits if each stands with probability `alpha`: E(alpha, K).

    The target's own token is among them.
    """
    return sum(alpha**i for i in range(k + 1))


def expected_speedup(alpha: float, k: int, c: float, v: float) -> float:
    """E(alpha, K) / (K c + v): over plain decoding.

    Parameters
    ----------
    alpha
        The chance that a draft stands: `SpecDecodingStats.per_token_acceptance`.
    k
        Drafts per round.
    c, v
        A step of the draft, and the verification of `k` drafts, over a step of the target.
    """
    return expected_tokens(alpha, k) / (k * c + v)


def rounds_by_width(levels: Sequence[SpecDecodingStats], num_decoded: int) -> list[list[int]]:
    """Per level from the target down, how many of its passes verified 0, 1, 2, ... drafts.

    The last entry is the level that nobody drafts for. One sequence's passes; those of a batch are summed
    over its rows.

    Parameters
    ----------
    levels
        What every draft level did, the one next to the target first.
    num_decoded
        Tokens that the target committed after the prefill.
    """
    counts, emitted = [], num_decoded
    for level in levels:
        # every pass commits the drafts that stood and one token more
        num_passes = emitted - level.num_accepted_tokens
        at_least = [num_passes, *level.num_draft_tokens_per_pos, 0]
        counts.append([more - fewer for more, fewer in pairwise(at_least)])
        emitted = level.num_draft_tokens
    return [*counts, [emitted]]


def seconds_of(rounds: Sequence[Sequence[int]], seconds: Sequence[Sequence[float]]) -> float:
    """What those passes take, if `seconds[level][k]` is one of them that verifies `k` drafts."""
    return sum(
        count * cost
        for counts, costs in zip(rounds, seconds, strict=True)
        for count, cost in zip(counts, costs, strict=False)
        if count
    )
