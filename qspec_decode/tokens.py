"""The tokens of a batch: one buffer for committed and speculative ids, and flat calls made from it."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from qspec_decode.protocol import FlatTokens


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
    fixed
        Whether rounds of fixed shapes work on it, too: `ids` is for them.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        capacity: int,
        device: torch.device | str = "cpu",
        *,
        fixed: bool = False,
    ):
        self.capacity = capacity
        self.texts = [list(prompt) for prompt in prompts]
        shape = len(prompts), capacity if fixed else 0
        self.ids: Int64[Tensor, "batch capacity"] = torch.zeros(shape, dtype=torch.int64, device=device)

    def restart(self, prompts: Sequence[Sequence[int]]) -> None:
        """Hold these prompts, of as many rows or fewer, and nothing else."""
        others = len(self.texts) - len(prompts)
        self.texts = [list(prompt) for prompt in prompts] + [[] for _ in range(others)]

    def begin(self) -> None:
        """From here on rounds of fixed shapes go on in `ids`."""
        held = torch.zeros(self.ids.shape, dtype=torch.int64)
        for row, text in zip(held, self.texts, strict=True):
            row[: len(text)] = torch.tensor(text)
        self.ids.copy_(held.to(self.ids.device))

    def write(self, row: int, position: int, ids: Sequence[int]) -> None:
        """Set ids of a row from a position on, no further than behind its last one."""
        self.texts[row][position : position + len(ids)] = ids

    def flat(
        self, rows: Sequence[int], starts: Sequence[int], wanted: Sequence[int], ends: Sequence[int]
    ) -> FlatTokens:
        """Tokens starts..ends-1 of each row, with logits wanted from position `wanted` on.

        Raises nothing: starts <= wanted < ends is the caller's invariant.
        """
        ids: list[int] = []
        of_row: list[int] = []
        positions: list[int] = []
        logits_at: list[int] = []
        for row, start, want, end in zip(rows, starts, wanted, ends, strict=True):
            logits_at += range(len(ids) + want - start, len(ids) + end - start)
            ids += self.texts[row][start:end]
            of_row += [row] * (end - start)
            positions += range(start, end)
        return FlatTokens(ids, of_row, positions, None if len(logits_at) == len(ids) else logits_at)
