"""What happened in a run, level by level, under vLLM's names."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class SpecDecodingStats:
    """Counts of one draft level, as seen by the level that verifies it.

    Tokens cut at an end-of-text id are counted: they were drafted and verified. Times are seconds.

    Parameters
    ----------
    name
        What drafts: a precision, "ngram", or the name of a model.
    num_drafts
        Row-rounds in which at least one token was drafted.
    num_refused
        Those of them in which a draft was refused, which ends the round.
    draft_time, verify_time
        Time in this level's proposals, and in the verification of them; 0 where rounds were captured as CUDA
        graphs, which are one launch each.
    """

    name: str
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_refused: int = 0
    num_accepted_tokens_per_pos: list[int] = field(default_factory=list)
    num_draft_tokens_per_pos: list[int] = field(default_factory=list)
    draft_time: float = 0.0
    verify_time: float = 0.0

    def record(self, num_draft_tokens: Sequence[int], num_accepted: Sequence[int]) -> None:
        """Add one round: per row, how many tokens were drafted and how many of them stood."""
        longest = max(num_draft_tokens, default=0)
        for counts in (self.num_accepted_tokens_per_pos, self.num_draft_tokens_per_pos):
            counts.extend([0] * (longest - len(counts)))
        for d, a in zip(num_draft_tokens, num_accepted, strict=True):
            self.num_drafts += d > 0
            self.num_refused += a < d
            self.num_draft_tokens += d
            self.num_accepted_tokens += a
            for i in range(d):
                self.num_draft_tokens_per_pos[i] += 1
                self.num_accepted_tokens_per_pos[i] += i < a

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens that a round with drafts commits on average, the correction or bonus token included."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else 1.0

    @property
    def per_token_acceptance(self) -> float:
        """Share of drafts that stood among those decided on: the alpha of E(alpha, K).

        Unlike `acceptance_rate` it leaves out drafts behind a refused one.
        """
        decided = self.num_accepted_tokens + self.num_refused
        return self.num_accepted_tokens / decided if decided else 0.0

    @property
    def acceptance_rate_per_pos(self) -> list[float]:
        """Per draft position, the share of the drafts made there that stood."""
        pairs = zip(self.num_accepted_tokens_per_pos, self.num_draft_tokens_per_pos, strict=True)
        return [accepted / drafted for accepted, drafted in pairs]

    def to_dict(self) -> dict[str, Any]:
        """Counts and derived rates as plain numbers, for JSON."""
        return {
            "name": self.name,
            "num_drafts": self.num_drafts,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_tokens": self.num_accepted_tokens,
            "num_accepted_tokens_per_pos": self.num_accepted_tokens_per_pos,
            "acceptance_rate": self.acceptance_rate,
            "acceptance_rate_per_pos": self.acceptance_rate_per_pos,
            "per_token_acceptance": self.per_token_acceptance,
            "mean_acceptance_length": self.mean_acceptance_length,
            "draft_time": self.draft_time,
            "verify_time": self.verify_time,
        }
