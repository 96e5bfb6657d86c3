"""What a round of a level commits, and ragged rows as rectangles."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from qspec_decode.accept import greedy
from qspec_decode.proposal import Proposal


@dataclass(frozen=True)
class Emission:
    """Tokens that one round of a level committed, in the form of `Proposal`, and how they came about.

    Parameters
    ----------
    ids, num_tokens
        Committed ids padded on the right, and their number, 1..k+1.
    num_draft_tokens, num_accepted_tokens
        Per row, how many drafts there were and how many stood.
    probs
        The level's own distribution at every committed position; None when greedy.
    margins
        By how much each committed token leads in the level's own logits; None unless an outlook asks for it.
    """

    ids: Int64[Tensor, "rows width"]
    num_tokens: Int64[Tensor, " rows"]
    num_draft_tokens: Int64[Tensor, " rows"]
    num_accepted_tokens: Int64[Tensor, " rows"]
    probs: Float[Tensor, "rows width vocab"] | None
    margins: list[list[float]] | None = None

    def on_host(self) -> "Emission":
        """The same on the CPU, by one copy, without the distributions."""
        if self.ids.device.type == "cpu":
            return self
        counts = (self.num_tokens, self.num_draft_tokens, self.num_accepted_tokens)
        block = torch.cat([torch.stack(counts, 1), self.ids], 1).cpu()
        return Emission(block[:, 3:], block[:, 0], block[:, 1], block[:, 2], None)


def compare(
    proposal: Proposal, logits: Tensor, best: Int64[Tensor, " n"], leads: list[float]
) -> tuple[list[list[int]], list[list[float]]]:
    """Decide greedily: what each row commits, and by how much each of its tokens leads.

    `proposal.outlook` is told how the drafts fared.

    Parameters
    ----------
    logits, best, leads
        The verifier's after every row's last token and each of its drafts, row after row; the ids of the
        highest, and by how much those lead.
    """
    chosen, committed, margins, at = best.tolist(), [], [], 0
    rows = zip(proposal.ids.tolist(), proposal.num_tokens.tolist(), strict=True)
    for place, (ids, count) in enumerate(rows):
        n = greedy.num_accepted(ids[:count], chosen[at:])
        committed.append(chosen[at : at + n + 1])
        margins.append(leads[at : at + n + 1])
        if proposal.outlook is not None and proposal.margins is not None:
            verified = leads[at : at + n]
            if n < count:
                verified.append(float(logits[at + n, ids[n]] - logits[at + n, chosen[at + n]]))
            proposal.outlook.learn(proposal.margins[place][: len(verified)], verified)
        at += count + 1
    return committed, margins


def rectangle(flat: Tensor, counts: Tensor, width: int) -> Tensor:
    """Ragged rows laid end to end, `counts` entries each, as [rows, width, ...], zeros on the right."""
    if len(flat) == len(counts) * width:
        return flat.view(len(counts), width, *flat.shape[1:])
    out = flat.new_zeros(len(counts), width, *flat.shape[1:])
    out[torch.arange(width, device=counts.device) < counts[:, None]] = flat
    return out


def padded(ragged: Sequence[Sequence[int]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of numbers as a rectangle of the type and place of `like`, zeros on the right; their counts."""
    counts = [len(row) for row in ragged]
    width = max(counts, default=0)
    filled = [[*row, *[0] * (width - len(row))] for row in ragged]
    ids = torch.tensor(filled, dtype=like.dtype).view(len(ragged), width).to(like.device)
    return ids, torch.tensor(counts).to(like.device)
