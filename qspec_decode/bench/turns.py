"""Taking turns, so that a machine that slows down or speeds up meets everyone alike."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def take_turns(everyone: Sequence[T], num_rounds: int) -> Iterator[tuple[int, T]]:
    """(round, whose turn it is): all of them in every round, and another one first in each."""
    for index in range(num_rounds):
        start = index % len(everyone)
        for one in (*everyone[start:], *everyone[:start]):
            yield index, one
