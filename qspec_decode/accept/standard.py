"""Standard rejection rule (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

Whatever the drafter, the emitted tokens are distributed exactly as the target's.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import pad

from qspec_kernels import draw, draw_residual

LOSSLESS = True


def accept(
    draft_ids: Int64[Tensor, "rows k"],
    num_draft_tokens: Int64[Tensor, " rows"],
    draft_probs: Float[Tensor, "rows k vocab"] | None,
    target_probs: Float[Tensor, "rows k+1 vocab"],
    coins: Float64[Tensor, "rows k"],
    draws: Float64[Tensor, "rows k+1"],
) -> tuple[Int64[Tensor, " rows"], Int64[Tensor, " rows"]]:
    """Accept draft x with probability min(1, p(x) / q(x)); on refusal draw from max(p - q, 0).

    Parameters
    ----------
    draft_ids, num_draft_tokens
        Drafted ids padded on the right, and how many of a row's are real.
    draft_probs
        The distribution q that each draft was drawn from, after all processors. None says that the
        drafts were not drawn: q is one at the drafted id.
    target_probs
        The target's p after the context and each prefix of the drafts, after all processors.
    coins, draws
        Uniform numbers in [0, 1), independent of each other and of those that drew the drafts:
        one acceptance coin per draft, one number per position for the residual or bonus token.

    Returns
    -------
    Number of accepted drafts per row, and the id that follows them.
    """
    rows, k = draft_ids.shape
    ids = draft_ids.clamp(0, target_probs.shape[-1] - 1)
    p = target_probs[:, :k].gather(2, ids[..., None])[..., 0].double()
    q = torch.ones_like(p) if draft_probs is None else draft_probs.gather(2, ids[..., None])[..., 0].double()
    real = torch.arange(k, device=draft_ids.device) < num_draft_tokens[:, None]
    # u < p / q without the division; strict, so that p = 0 never stands and p = q always does
    stands = (coins * q < p) & real
    num_accepted = stands.long().cumprod(1).sum(1)

    refused = num_accepted < num_draft_tokens
    number = draws.gather(1, num_accepted[:, None])[:, 0]
    # rows of the distributions are named and not gathered, so that the draw alone reads whole vocabularies
    row = torch.arange(rows, device=draft_ids.device)
    p_rows = row * (k + 1) + num_accepted
    if draft_probs is None:
        # q is one at the refused id: what is left of p is all but that
        at = pad(ids, (0, 1)).gather(1, num_accepted[:, None])[:, 0]
        following = draw(target_probs.flatten(0, 1), number, rows=p_rows, without=at.where(refused, -1))
    else:
        q_rows = (row * k + num_accepted).where(refused, -1)
        following = draw_residual(
            target_probs.flatten(0, 1), draft_probs.flatten(0, 1), number, p_rows=p_rows, q_rows=q_rows
        )
    return num_accepted, following
