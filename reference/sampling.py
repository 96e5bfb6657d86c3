"""The distribution that a token is drawn from, one list of numbers at a time, in float64."""

import torch
from torch import Tensor


def probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """float64 [vocab] from logits [vocab]: temperature, then top-k, then top-p, each on what is left.

    Ties with the k-th are kept; top-p keeps the fewest most probable ids whose mass reaches it, lower
    ids first among equals.
    """
    scaled = [x / temperature for x in logits.double().tolist()]
    if 0 < top_k < len(scaled):
        kth = sorted(scaled, reverse=True)[top_k - 1]
        scaled = [x if x >= kth else -torch.inf for x in scaled]
    probs = torch.tensor(scaled, dtype=torch.float64).softmax(0).tolist()
    if top_p < 1:
        mass, kept = 0.0, set()
        for token in sorted(range(len(probs)), key=lambda token: -probs[token]):
            if mass < top_p:
                kept.add(token)
                mass += probs[token]
        probs = [p / mass if token in kept else 0.0 for token, p in enumerate(probs)]
    return torch.tensor(probs, dtype=torch.float64)


def argmax(logits: Tensor) -> int:
    """The lowest index of the highest value; -1 where that is not finite or one value is NaN."""
    values = logits.tolist()
    if any(value != value for value in values) or not -torch.inf < max(values) < torch.inf:
        return -1
    return values.index(max(values))


def draw(weights: Tensor, uniform: float) -> int:
    """The first id at which the running sum of weights exceeds `uniform` times the whole sum."""
    total, running = sum(weights.tolist()), 0.0
    for token, weight in enumerate(weights.tolist()):
        running += weight
        if running > uniform * total:
            return token
    raise ValueError(f"no id at {uniform} of weights {weights.tolist()}")
