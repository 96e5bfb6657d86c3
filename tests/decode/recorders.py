"""What passes between the loop, the model and the caller, written down."""

from typing import Any

from torch import Tensor

from tests.decode.tabular import TabularModel


class CallLog(TabularModel):
    """Remembers the precision, rows and positions of each forward call."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.log: list[tuple[str, list[int], list[int]]] = []

    def forward(
        self, ids: Tensor, rows: Tensor, positions: Tensor, cache: Any, precision: str, **kwargs: Any
    ) -> Tensor:
        self.log.append((precision, rows.tolist(), positions.tolist()))
        return super().forward(ids, rows, positions, cache, precision, **kwargs)


class Recorder:
    """A streamer that keeps every call, `(rows, tokens, num_drafted, num_accepted)`."""

    def __init__(self) -> None:
        self.puts: list[tuple[list[int], list[list[int]], list[int], list[int]]] = []
        self.num_ends = 0

    def put(
        self, rows: list[int], tokens: list[list[int]], num_drafted: list[int], num_accepted: list[int]
    ) -> None:
        assert not self.num_ends
        self.puts.append((rows, tokens, num_drafted, num_accepted))

    def end(self) -> None:
        self.num_ends += 1

    def by_row(self, batch: int) -> list[list[int]]:
        """All tokens of each row."""
        found: list[list[int]] = [[] for _ in range(batch)]
        for rows, tokens, _, _ in self.puts:
            for row, ids in zip(rows, tokens, strict=True):
                found[row] += ids
        return found
