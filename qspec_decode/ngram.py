"""Prompt lookup: a draft level that costs no model (as transformers' and vLLM's n-gram proposers)."""

from array import array
from collections.abc import Sequence

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

    def prefill(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Nothing to prepare."""

    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Nothing is remembered between calls."""

    def propose(self, rows: Sequence[int], lengths: Sequence[int], counts: Sequence[int]) -> Proposal:
        """A row without an earlier occurrence gets no proposal."""
        ids = []
        for row, length, count in zip(rows, lengths, counts, strict=True):
            found = self._lookup(self._run.buffer.texts[row][:length], count)
            self._run.buffer.write(row, length, found)
            ids.append(found)
        return Proposal(ids, None)

    def _lookup(self, context: list[int], count: int) -> list[int]:
        # bytes are searched at once, ids would be one by one
        text = array("q", context)
        size, everything = text.itemsize, text.tobytes()
        for n in range(min(self._longest, len(context) - 1), self._shortest - 1, -1):
            # what ends before the last token, so that something follows it
            end = len(everything) - size
            while (at := everything.rfind(everything[-n * size :], 0, end)) >= 0:
                if at % size == 0:
                    first = at // size + n
                    return context[first : first + count]
                # bytes of two ids that happen to look like these
                end = at + n * size - 1
        return []
