"""What a draft level is to the level above it, and what all levels of one call share."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

from qspec_decode.outlook import Outlook
from qspec_decode.sampling import SamplingParams
from qspec_decode.tokens import TokenBuffer


@dataclass
class Run:
    """What all levels of one call share.

    `spare` positions at the end of the buffer, and of every cache, are for tokens that no one looks at.
    """

    buffer: TokenBuffer
    seeds: Int64[Tensor, "batch 2"]
    sampling: SamplingParams
    spare: int = 0

    @property
    def capacity(self) -> int:
        """Longest row."""
        return self.buffer.ids.shape[1] - self.spare


@dataclass(frozen=True)
class Proposal:
    """Tokens that a level puts up for verification.

    Parameters
    ----------
    ids
        Proposed ids, padded on the right.
    num_tokens
        How many of a row's are real; a level may propose fewer than it was asked for.
    probs
        The distribution each was drawn from; None where nothing was drawn (greedy, n-gram).
    margins
        By how much each of a row's leads in the level's own logits, where an outlook was asked.
    outlook
        Wants to be told the same margins of whoever verifies; None if nobody does.
    """

    ids: Int64[Tensor, "rows k"]
    num_tokens: Int64[Tensor, " rows"]
    probs: Float[Tensor, "rows k vocab"] | None
    margins: list[list[float]] | None = None
    outlook: Outlook | None = None


@runtime_checkable
class Level(Protocol):
    """What the level above needs of the one below."""

    name: str

    def prefill(self, rows: Int64[Tensor, " rows"], lengths: Int64[Tensor, " rows"]) -> None:
        """Take in the prompts, all but each row's last token."""
        ...

    def propose(
        self, rows: Int64[Tensor, " rows"], lengths: Int64[Tensor, " rows"], counts: Int64[Tensor, " rows"]
    ) -> Proposal:
        """Extend each row, `lengths` tokens long, by up to `counts`; the ids are also left in the buffer."""
        ...

    def keep(self, rows: Int64[Tensor, " rows"], lengths: Int64[Tensor, " rows"]) -> None:
        """Forget what was computed for tokens from position `lengths` on: others stand there now."""
        ...
