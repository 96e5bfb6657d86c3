"""What a round of a level commits and what it tells of its drafts, and ragged rows as rectangles."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from qspec_decode.outlook import margins
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
    margins: Float[Tensor, "rows width"] | None = None

    def on_host(self) -> "Emission":
        """The same on the CPU, by one copy, without the distributions."""
        if self.ids.device.type == "cpu":
            return self
        counts = (self.num_tokens, self.num_draft_tokens, self.num_accepted_tokens)
        block = torch.cat([torch.stack(counts, 1), self.ids], 1).cpu()
        return Emission(block[:, 3:], block[:, 0], block[:, 1], block[:, 2], None)


def margins_of(logits: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
    """Margins [rows, width] of `ids` in logits [sum(counts), vocab]; zeros behind each row's count."""
    width = ids.shape[1]
    real = torch.arange(width, device=ids.device) < counts[:, None]
    return rectangle(margins(logits, ids[real]), counts, width)


def report(proposal: Proposal, accepted: Tensor, logits: Tensor) -> None:
    """Tell the outlook the margins that a verification gave the drafts it decided on."""
    assert proposal.outlook is not None
    assert proposal.margins is not None
    k = proposal.ids.shape[1]
    # behind the last draft there is none: what stands there is looked up and left out
    found = margins_of(logits, pad(proposal.ids, (0, 1)), proposal.num_tokens + 1)[:, :k]
    decided = (
        torch.arange(k, device=logits.device) < torch.minimum(accepted + 1, proposal.num_tokens)[:, None]
    )
    proposal.outlook.learn(proposal.margins[decided], found[decided])


def rectangle(flat: Tensor, counts: Tensor, width: int) -> Tensor:
    """Ragged rows laid end to end, `counts` entries each, as [rows, width, ...], zeros on the right."""
    if len(flat) == len(counts) * width:
        return flat.view(len(counts), width, *flat.shape[1:])
    out = flat.new_zeros(len(counts), width, *flat.shape[1:])
    out[torch.arange(width, device=counts.device) < counts[:, None]] = flat
    return out


def padded(ragged: Sequence[Sequence[int | float]], width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of numbers as [rows, width] of the type and place of `like`, zeros on the right; their counts."""
    filled = [[*row, *[0] * (width - len(row))] for row in ragged]
    counts = torch.tensor([len(row) for row in ragged])
    return torch.tensor(filled, dtype=like.dtype).view(-1, width).to(like.device), counts.to(like.device)
