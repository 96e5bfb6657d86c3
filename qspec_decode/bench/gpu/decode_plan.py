"""What `qspec bench gpu` decodes, in which order: what a budget leaves out stands last."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from qspec_decode.bench.contenders import LADDERS, Contender
from qspec_decode.graphs.pool import MOST_RUNNERS


@dataclass(frozen=True)
class Task:
    """Something that is measured in one go, at one scale and batch size.

    Parameters
    ----------
    kind
        "passes" of a model alone; "runs", which decode in turns; "peer": transformers, with plain bf16.
    ladders
        Of runs; plain decoding of their targets takes turns with them.
    graphs
        Whether rounds are captured, or ops run one by one.
    """

    kind: Literal["passes", "runs", "peer"]
    scale: str
    batch: int
    ladders: tuple[Contender, ...] = ()
    graphs: bool = True

    @property
    def contenders(self) -> list[Contender]:
        """Plain decoding of every target, then the ladders."""
        return list(dict.fromkeys((*(one.plain for one in self.ladders), *self.ladders)))

    @property
    def what(self) -> str:
        """For people, and for the list of what was dropped."""
        at = f"{self.scale}, batch {self.batch}"
        if self.kind == "passes":
            return f"passes of {at}"
        if self.kind == "peer":
            return f"transformers, compiled, at {at}"
        ladders = "; ".join(one.title for one in self.ladders)
        return f"{ladders} at {at}, {'with' if self.graphs else 'without'} graphs"


def tasks(
    scales: Sequence[str], batches: Sequence[int], ladders: Sequence[Contender] = LADDERS
) -> Iterator[Task]:
    """First a ladder of each target at every batch size, and who else decodes; then the other ladders.

    Nobody but the first needs all batch sizes without graphs, or compiled by transformers: those come last.
    """
    first, *others = groups(ladders)
    ordered = by_weight(batches)
    least, rest = ordered[0], ordered[1:]
    for scale in scales:
        for batch in ordered:
            yield Task("passes", scale, batch)
            yield Task("runs", scale, batch, first)
            if batch == least:
                yield Task("runs", scale, batch, first, graphs=False)
                yield Task("peer", scale, batch)
    for scale in scales:
        for batch in ordered:
            yield from (Task("runs", scale, batch, group) for group in others)
    for scale in scales:
        for batch in rest:
            yield Task("runs", scale, batch, first, graphs=False)
            yield Task("peer", scale, batch)
    for scale in scales:
        for batch in ordered:
            yield from (Task("runs", scale, batch, group, graphs=False) for group in others)


def by_weight(batches: Sequence[int]) -> list[int]:
    """The smallest batch, where bytes bound, then the two largest, where arithmetic does, then the others."""
    ordered = sorted(set(batches))
    large = ordered[1:][-2:]
    return [ordered[0], *reversed(large), *ordered[1 : len(ordered) - len(large)]]


def groups(ladders: Sequence[Contender]) -> list[tuple[Contender, ...]]:
    """Ladders that take turns: the first of every target, then as they come.

    No group has more contenders than a model keeps captured rounds for, so that none is captured twice.
    """
    first = {one.target: one for one in reversed(ladders)}
    ordered = [*reversed(first.values()), *(one for one in ladders if one not in first.values())]
    found: list[list[Contender]] = []
    for index, one in enumerate(ordered):
        joined = [*found[-1], one] if found else [one]
        new = index == len(first) or len({*joined, *(other.plain for other in joined)}) > MOST_RUNNERS
        if not found or new:
            found.append([one])
        else:
            found[-1] = joined
    return [tuple(group) for group in found]
