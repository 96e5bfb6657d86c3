"""The cost model: what a ladder gains, from what single passes cost and how often drafts stand."""


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


def between(points: dict[int, float], at: int) -> float:
    """The value at `at`, on straight lines between known points; beyond the outermost two on their line.

    Parameters
    ----------
    points
        Value by place, in any order; one at least.
    """
    places = sorted(points)
    if len(places) == 1:
        return points[places[0]]
    upper = next((i for i, place in enumerate(places[1:], 1) if place >= at), len(places) - 1)
    low, high = places[upper - 1], places[upper]
    share = (at - low) / (high - low)
    return points[low] + share * (points[high] - points[low])
