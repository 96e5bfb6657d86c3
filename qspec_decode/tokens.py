"""The tokens of a batch: one buffer for committed and speculative ids, and flat calls made from it."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor


@dataclass(frozen=True)
class FlatTokens:
    """A ragged selection of tokens in the flat form that `Model.forward` takes.

    Parameters
    ----------
    ids, rows, positions
        One entry per token: its id, its row of the batch, its absolute position.
    logits_at
        Indices of the tokens whose logits are wanted; None for all of them.
    """

    ids: Int64[Tensor, " tokens"]
    rows: Int64[Tensor, " tokens"]
    positions: Int64[Tensor, " tokens"]
    logits_at: Int64[Tensor, " wanted"] | None


class TokenBuffer:
    """Ids of every row by absolute position.

    What lies beyond a level's own length is scratch: lower levels write their drafts there, and
    whoever verifies them overwrites what it corrects.

    Parameters
    ----------
    prompts
        Ids of each row's prompt.
    capacity
        Longest row ever held.
    device
        Where the model is.
    """

    def __init__(self, prompts: list[list[int]], capacity: int, device: torch.device | str = "cpu"):
        ids = torch.zeros(len(prompts), capacity, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        self.ids = ids.to(device)

    def write(
        self, rows: Int64[Tensor, " n"], positions: Int64[Tensor, " n"], ids: Int64[Tensor, " n"]
    ) -> None:
        """Set one id per row."""
        self.ids[rows, positions] = ids

    def flat(
        self,
        rows: Int64[Tensor, " n"],
        starts: Int64[Tensor, " n"],
        wanted: Int64[Tensor, " n"],
        ends: Int64[Tensor, " n"],
    ) -> FlatTokens:
        """Tokens starts..ends-1 of each row, with logits wanted from position `wanted` on.

        Raises nothing: starts <= wanted < ends is the caller's invariant.
        """
        flat: list[tuple[int, int]] = []
        logits_at: list[int] = []
        for row, start, want, end in torch.stack((rows, starts, wanted, ends), 1).tolist():
            logits_at += range(len(flat) + want - start, len(flat) + end - start)
            flat += ((row, position) for position in range(start, end))
        flat_rows, positions = torch.tensor(flat).T.contiguous().to(rows.device)
        at = None if len(logits_at) == len(flat) else torch.tensor(logits_at).to(rows.device)
        return FlatTokens(self.ids[flat_rows, positions], flat_rows, positions, at)
