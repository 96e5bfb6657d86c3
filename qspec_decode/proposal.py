"""What a draft level is to the level above it, and what all levels of one call share."""

from collections.abc import Sequence
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
        return self.buffer.capacity - self.spare


@dataclass(frozen=True)
class Proposal:
    """Tokens that a level puts up for verification.

    Parameters
    ----------
    ids
        Proposed ids of each row; a level may propose fewer than it was asked for.
    probs
        The distribution each was drawn from, [rows, most ids of a row, vocab]; None where nothing was drawn
        (greedy, n-gram).
    margins
        By how much each of a row's leads in the level's own logits, where an outlook was asked.
    outlook
        Wants to be told the same margins of whoever verifies; None if nobody does.
    """

    ids: list[list[int]]
    probs: Float[Tensor, "rows k vocab"] | None
    margins: list[list[float]] | None = None
    outlook: Outlook | None = None


@dataclass(frozen=True)
class Drafts:
    """The tokens of a `Proposal` where the model is.

    Parameters
    ----------
    ids
        Padded on the right.
    num_tokens
        How many of a row's are real.
    probs
        As in `Proposal`.
    """

    ids: Int64[Tensor, "rows k"]
    num_tokens: Int64[Tensor, " rows"]
    probs: Float[Tensor, "rows k vocab"] | None


@runtime_checkable
class Level(Protocol):
    """What the level above needs of the one below, row by row and in numbers.

    A pass leaves the processor's caches full of weights, and the Python of one tensor's op takes some twenty
    microseconds to be fetched again: what lies between two passes is numbers where it can be.
    """

    name: str

    def prefill(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Take in the prompts, all but each row's last token."""
        ...

    def propose(self, rows: Sequence[int], lengths: Sequence[int], counts: Sequence[int]) -> Proposal:
        """Extend each row, `lengths` tokens long, by up to `counts`; the ids are also left in the buffer."""
        ...

    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Forget what was computed for tokens from position `lengths` on: others stand there now."""
        ...
