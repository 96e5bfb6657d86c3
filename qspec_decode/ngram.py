"""Prompt lookup: a draft level that costs no model (as transformers' and vLLM's n-gram proposers)."""

import torch
from jaxtyping import Int64
from torch import Tensor

from qspec_decode.proposal import Proposal, Run


class NgramLevel:
    """Prompt lookup: proposes what followed the latest earlier occurrence of the row's last tokens.

    Parameters
    ----------
    run
        Shared state of the call.
    longest, shortest
        Lengths of the suffix searched for, tried from the longest down.
    """

    name = "ngram"

    def __init__(self, run: Run, longest: int, shortest: int):
        self._run, self._longest, self._shortest = run, longest, shortest

    def prefill(self, rows: Int64[Tensor, " rows"], lengths: Int64[Tensor, " rows"]) -> None:
        """Nothing to prepare."""

    def keep(self, rows: Int64[Tensor, " rows"], lengths: Int64[Tensor, " rows"]) -> None:
        """Nothing is remembered between calls."""

    def propose(
        self, rows: Int64[Tensor, " rows"], lengths: Int64[Tensor, " rows"], counts: Int64[Tensor, " rows"]
    ) -> Proposal:
        """A row without an earlier occurrence gets no proposal."""
        ids = lengths.new_zeros(len(rows), int(counts.max()))
        num_tokens = torch.zeros_like(lengths)
        for i, (row, length, count) in enumerate(
            zip(rows.tolist(), lengths.tolist(), counts.tolist(), strict=True)
        ):
            found = self._lookup(self._run.buffer.ids[row, :length], count)
            ids[i, : len(found)] = found
            num_tokens[i] = len(found)
            self._run.buffer.ids[row, length : length + len(found)] = found
        return Proposal(ids, num_tokens, None)

    def _lookup(self, context: Tensor, count: int) -> Tensor:
        for n in range(min(self._longest, len(context) - 1), self._shortest - 1, -1):
            # windows that end before the last token, so that something follows each of them
            matches = (context[:-1].unfold(0, n, 1) == context[-n:]).all(1).nonzero()[:, 0]
            if len(matches):
                start = int(matches[-1]) + n
                return context[start : start + count]
        return context[:0]
