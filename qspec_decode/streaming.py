"""`TextStreamer`: text as it is decoded, coloured by where each token came from."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from qspec_decode.tokenizer import Tokenizer

ACCEPTED, CORRECTION, BONUS = "\x1b[32m", "\x1b[33m", "\x1b[36m"
DIM, RESET = "\x1b[2m", "\x1b[0m"

LEGEND = (
    f"{ACCEPTED}draft that stood{RESET}  {CORRECTION}the target's correction{RESET}  "
    f"{BONUS}the target's bonus{RESET}"
)
"""What the colours mean, in the colours."""


@runtime_checkable
class Sink(Protocol):
    """Where text goes: a file that is open for writing."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


class TextStreamer:
    """Writes the first row of a call to a stream, each character as soon as its bytes are complete.

    Parameters
    ----------
    tokenizer
        Of the model that decodes.
    out
        Where the text goes, usually standard output.
    colour
        Tell accepted drafts, corrections and bonus tokens apart with ANSI colours.
    opening
        Called once, when the first tokens are there and before they are written.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        out: Sink,
        *,
        colour: bool,
        opening: Callable[[], None] | None = None,
    ):
        self._tokenizer, self._out, self._colour = tokenizer, out, colour
        self._opening = opening
        self._ids: list[int] = []
        # text of ids before `_read` is written; decoding starts at `_start`, because some tokenizers
        # drop a blank at the very beginning of what they decode
        self._start = self._read = 0

    def put(
        self, rows: list[int], tokens: list[list[int]], num_drafted: list[int], num_accepted: list[int]
    ) -> None:
        """See `qspec_decode.output.Streamer`. Rows other than 0 are passed over."""
        if self._opening:
            self._opening()
            self._opening = None
        for row, ids, drafted, accepted in zip(rows, tokens, num_drafted, num_accepted, strict=True):
            if row:
                continue
            # a round without drafts, such as the prefill, has nothing to correct and nothing to add to
            own = "" if not drafted else BONUS if accepted == drafted else CORRECTION
            for i, token in enumerate(ids):
                self._write(token, ACCEPTED if i < accepted else own)
        self._out.flush()

    def end(self) -> None:
        """Write what is left, even if its last character is not whole."""
        rest = self._pending()
        self._out.write(rest + "\n")
        self._out.flush()

    def _write(self, token: int, colour: str) -> None:
        self._ids.append(token)
        text = self._pending()
        # a replacement character at the end stands for bytes whose character is not whole yet
        if not text or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return
        self._start, self._read = self._read, len(self._ids)
        self._out.write(f"{colour}{text}{RESET}" if self._colour and colour else text)

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        return self._tokenizer.decode(self._ids[self._start :])[len(before) :]
