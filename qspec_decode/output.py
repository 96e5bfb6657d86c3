"""What `generate` and `speculate` return, and how they report tokens on the way."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int64
from torch import Tensor

from qspec_decode.noise import RowSeed
from qspec_decode.stats import SpecDecodingStats


@runtime_checkable
class Streamer(Protocol):
    """Receives committed tokens round by round; nothing handed over is ever taken back."""

    def put(
        self, rows: list[int], tokens: list[list[int]], num_drafted: list[int], num_accepted: list[int]
    ) -> None:
        """New tokens of some rows.

        The first `num_accepted[i]` of `tokens[i]` are drafts that stood; the one behind them, if any,
        is the target's own: a bonus if all `num_drafted[i]` drafts stood, else a correction.
        """
        ...

    def end(self) -> None:
        """No more tokens will come."""
        ...


@dataclass
class DecodingOutput:
    """The result of one call.

    Parameters
    ----------
    sequences
        Per row, the prompt's ids and the new ones.
    token_ids
        Per row, the new ids alone.
    finish_reasons
        Per row: "stop" after an end-of-text id, "length" at a limit.
    lossless
        True if every rule used leaves the target's distribution (greedy: its tokens) unchanged.
    reference
        What the output is lossless against.
    seeds
        One pair per row; passing them back as `seed` reproduces a sampled run.
    levels
        Statistics per draft level, the one next to the target first; empty for plain decoding.
    num_target_steps
        Forward passes of the target after the prefill.
    prefill_seconds, decode_seconds
        The prefill yields each row's first token, so decoding makes one token less.
    graph_bytes
        Memory of the device that captured rounds hold with their caches; None if ops ran one by one.
    num_speculative_tokens
        K per draft level: the most that a round drafts.
    draft_confidence_threshold
        As in `SpeculativeConfig`: 0 where drafting never ended early, None where each level had its own.
    """

    sequences: list[Int64[Tensor, " _"]]
    token_ids: list[list[int]]
    finish_reasons: list[str]
    lossless: bool
    reference: str
    seeds: list[RowSeed]
    levels: list[SpecDecodingStats] = field(default_factory=list)
    num_target_steps: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    graph_bytes: int | None = None
    num_speculative_tokens: list[int] = field(default_factory=list)
    draft_confidence_threshold: float | None = 0.0

    @property
    def num_tokens(self) -> int:
        """New tokens of all rows together."""
        return sum(len(row) for row in self.token_ids)

    @property
    def tokens_per_second(self) -> float:
        """Tokens decoded after the prefill, per second of decoding; 0 if there were none."""
        decoded = self.num_tokens - len(self.token_ids)
        return decoded / self.decode_seconds if decoded and self.decode_seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as plain values for JSON."""
        return {
            "token_ids": self.token_ids,
            "num_tokens": self.num_tokens,
            "finish_reasons": self.finish_reasons,
            "lossless": self.lossless,
            "reference": self.reference,
            "seeds": [list(seed) for seed in self.seeds],
            "levels": [level.to_dict() for level in self.levels],
            "num_target_steps": self.num_target_steps,
            "prefill_seconds": self.prefill_seconds,
            "decode_seconds": self.decode_seconds,
            "tokens_per_second": self.tokens_per_second,
            "graph_bytes": self.graph_bytes,
            "num_speculative_tokens": self.num_speculative_tokens,
            "draft_confidence_threshold": self.draft_confidence_threshold,
        }
