"""Acceptance rules on one row, and the exact distribution of what they emit, by enumeration in float64.

A conditional distribution is a function from the ids so far, as a tuple, to float64 [vocab].
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from reference.sampling import draw

NextProbs = Callable[[tuple[int, ...]], Tensor]


def greedy(draft_ids: list[int], target_ids: list[int]) -> tuple[int, int]:
    """Accepted drafts and the id that follows; `target_ids` is one longer than `draft_ids`."""
    for position, token in enumerate(draft_ids):
        if token != target_ids[position]:
            return position, target_ids[position]
    return len(draft_ids), target_ids[-1]


def standard(
    draft_ids: list[int], q: list[Tensor] | None, p: list[Tensor], coins: list[float], draws: list[float]
) -> tuple[int, int]:
    """The rejection rule (arXiv 2211.17192) on one row; q None stands for drafts that were not drawn."""
    for position, token in enumerate(draft_ids):
        proposal = one_hot(token, len(p[0])) if q is None else q[position]
        if coins[position] >= p[position][token] / proposal[token]:
            return position, draw(residual(p[position], proposal), draws[position])
    return len(draft_ids), draw(p[-1], draws[len(draft_ids)])


def residual(p: Tensor, q: Tensor) -> Tensor:
    """max(p - q, 0) normalised; p itself where nothing is left."""
    left = (p - q).clamp(min=0)
    return left / left.sum() if left.sum() > 0 else p


def one_hot(token: int, vocab: int) -> Tensor:
    """Certainty."""
    return torch.eye(vocab, dtype=torch.float64)[token]


def round_distribution(
    target: NextProbs, draft: NextProbs, context: tuple[int, ...], k: int
) -> dict[tuple[int, ...], float]:
    """Probability of every emission of one round of the rejection rule, 1 to k+1 ids long."""
    found: dict[tuple[int, ...], float] = {}
    for emission, probability in _emissions(target, draft, context, k):
        found[emission] = found.get(emission, 0.0) + probability
    return found


def _emissions(
    target: NextProbs, draft: NextProbs, context: tuple[int, ...], k: int
) -> Iterator[tuple[tuple[int, ...], float]]:
    p = target(context)
    if k == 0:
        yield from (((token,), float(p[token])) for token in range(len(p)))
        return
    q = draft(context)
    refused = 0.0
    for token in range(len(p)):
        stands = float(torch.minimum(p[token], q[token]))
        refused += float(q[token]) - stands
        for rest, probability in _emissions(target, draft, (*context, token), k - 1):
            yield (token, *rest), stands * probability
    for token, probability in enumerate(residual(p, q).tolist()):
        yield (token,), refused * probability


def joint(next_probs: NextProbs, context: tuple[int, ...], length: int) -> Tensor:
    """Distribution of the next `length` ids, float64 [vocab] * length."""
    p = next_probs(context)
    if length == 1:
        return p
    return torch.stack([p[x] * joint(next_probs, (*context, x), length - 1) for x in range(len(p))])


def speculative_joint(
    target: NextProbs, draft: NextProbs, context: tuple[int, ...], k: int, length: int
) -> Tensor:
    """Distribution of the first `length` ids that repeated rounds emit, float64 [vocab] * length."""
    vocab = len(target(context))
    found = torch.zeros((vocab,) * length, dtype=torch.float64)
    for emission, probability in round_distribution(target, draft, context, k).items():
        if len(emission) >= length:
            found[emission[:length]] += probability
        elif probability:
            rest = speculative_joint(target, draft, context + emission, k, length - len(emission))
            found[emission] += probability * rest
    return found
