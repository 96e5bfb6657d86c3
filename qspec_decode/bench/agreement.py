"""How often a draft says what its target says, on text that neither wrote."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from qspec_decode.progress import track
from qspec_decode.protocol import Model, device_of
from qspec_decode.request import loaded_precision
from qspec_decode.sampling import SamplingParams, probabilities


@dataclass(frozen=True)
class Agreement:
    """Teacher-forced: both models read the same text, and are compared after every token of it.

    Parameters
    ----------
    top1
        Share of positions where both find the same token most probable: greedy acceptance.
    sampled
        Mean of sum(min(p, q)) at `temperature`: the chance that a sampled draft is accepted.
    """

    target: str
    draft: str
    num_positions: int
    top1: float
    temperature: float
    sampled: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Voice:
    """A precision of a model under the name it has in ladders."""

    model: Model
    precision: str
    name: str
    draft: bool = False

    def logits(self, text: Sequence[int]) -> Tensor:
        """Next-token logits [len(text), vocab] after every token of a text."""
        precision, device = loaded_precision(self.model, self.precision), device_of(self.model)
        ids, positions = torch.tensor(text).to(device), torch.arange(len(text), device=device)
        cache = self.model.new_cache(1, len(text), precision)
        return self.model.forward(
            ids, torch.zeros_like(ids), positions, cache, precision, draft_head=self.draft
        )


def agreement(
    target: Voice, drafts: Sequence[Voice], texts: Sequence[Sequence[int]], temperature: float = 0.8
) -> list[Agreement]:
    """Each draft against the target, over all positions of all texts."""
    sampling = SamplingParams(temperature=temperature)
    same, overlap = [0] * len(drafts), [0.0] * len(drafts)
    total = sum(len(text) for text in texts)
    for text in track(texts, len(texts), f"comparing drafts with {target.name}"):
        expected = target.logits(text)
        p = probabilities(expected, sampling)
        for i, draft in enumerate(drafts):
            logits = draft.logits(text)
            same[i] += int((logits.argmax(-1) == expected.argmax(-1)).sum())
            overlap[i] += float(torch.minimum(p, probabilities(logits, sampling)).sum(dtype=torch.float64))
    return [
        Agreement(target.name, draft.name, total, s / total, temperature, o / total)
        for draft, s, o in zip(drafts, same, overlap, strict=True)
    ]
