"""What a round of a level commits, and ragged rows as rectangles."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qspec_decode.accept import greedy
from qspec_decode.proposal import Proposal


@dataclass(frozen=True)
class Emission:
    """Tokens that one round of a level committed, and how they came about.

    Parameters
    ----------
    ids
        Committed ids of each row, 1..k+1.
    num_draft_tokens, num_accepted_tokens
        Per row, how many drafts there were and how many stood.
    probs
        The level's own distribution at every committed position, [rows, k+1, vocab]; None when greedy.
    margins
        By how much each committed token leads in the level's own logits; None when sampled.
    """

    ids: list[list[int]]
    num_draft_tokens: list[int]
    num_accepted_tokens: list[int]
    probs: Float[Tensor, "rows width vocab"] | None = None
    margins: list[list[float]] | None = None


def compare(
    proposal: Proposal, logits: Tensor, best: list[int], values: list[list[float]]
) -> tuple[list[list[int]], list[list[float]]]:
    """Decide greedily: what each row commits, and by how much each of its tokens leads.

    `proposal.outlook` is told how the drafts fared.

    Parameters
    ----------
    logits, best, values
        The verifier's after every row's last token and each of its drafts, row after row; the ids of the
        highest, and the two highest.
    """
    leads = [highest - second for highest, second in values]
    committed, margins, at = [], [], 0
    for place, ids in enumerate(proposal.ids):
        n = greedy.num_accepted(ids, best[at:])
        committed.append(best[at : at + n + 1])
        margins.append(leads[at : at + n + 1])
        if proposal.outlook is not None and proposal.margins is not None:
            verified = leads[at : at + n]
            if n < len(ids):
                verified.append(float(logits[at + n, ids[n]]) - values[at + n][0])
            proposal.outlook.learn(proposal.margins[place][: len(verified)], verified)
        at += len(ids) + 1
    return committed, margins


def rectangle(flat: Tensor, counts: Tensor, width: int) -> Tensor:
    """Ragged rows laid end to end, `counts` entries each, as [rows, width, ...], zeros on the right."""
    if len(flat) == len(counts) * width:
        return flat.view(len(counts), width, *flat.shape[1:])
    out = flat.new_zeros(len(counts), width, *flat.shape[1:])
    out[torch.arange(width, device=counts.device) < counts[:, None]] = flat
    return out


def padded(ragged: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids as int64 [rows, longest], zeros on the right, and how many each has, [rows]."""
    counts = [len(row) for row in ragged]
    width = max(counts, default=0)
    filled = [[*row, *[0] * (width - len(row))] for row in ragged]
    ids = torch.tensor(filled, dtype=torch.int64).view(len(ragged), width)
    return ids.to(device), torch.tensor(counts).to(device)
