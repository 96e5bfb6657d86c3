"""Greedy rule: a draft stands while it equals the target's own choice (design section 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

LOSSLESS = True


def accept(
    draft_ids: Int64[Tensor, "rows k"],
    num_draft_tokens: Int64[Tensor, " rows"],
    target_ids: Int64[Tensor, "rows k+1"],
) -> tuple[Int64[Tensor, " rows"], Int64[Tensor, " rows"]]:
    """Longest prefix of drafts that the target would have chosen, and the target's next token.

    Parameters
    ----------
    draft_ids
        Drafted ids, rows padded on the right with any value.
    num_draft_tokens
        How many of a row's drafts are real, 0..k.
    target_ids
        The target's argmax after the context and each prefix of the drafts.

    Returns
    -------
    Number of accepted drafts per row, and the id that follows them: a correction where a draft was
    refused, the bonus token where all stand.
    """
    k = draft_ids.shape[1]
    real = torch.arange(k, device=draft_ids.device) < num_draft_tokens[:, None]
    stands = (draft_ids == target_ids[:, :k]) & real
    num_accepted = stands.long().cumprod(1).sum(1)
    return num_accepted, target_ids.gather(1, num_accepted[:, None])[:, 0]


def num_accepted(draft_ids: Sequence[int], target_ids: Sequence[int]) -> int:
    """The number that `accept` finds for one row, whose drafts are all real."""
    pairs = zip(draft_ids, target_ids, strict=False)
    return next((n for n, (draft, chosen) in enumerate(pairs) if draft != chosen), len(draft_ids))
