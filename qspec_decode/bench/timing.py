"""Timing functions beside each other: in turns, so that what disturbs the machine disturbs them alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qspec_decode.bench.record import Spread, spread

MIN_SAMPLES = 5
_TURN_SECONDS = 0.02
# a call this long needs no other before it
_LONG_SECONDS = 0.02
# after an op of PyTorch its workers spin on cores that the next one wants
_SETTLE_SECONDS = 0.02


@dataclass(frozen=True)
class Timed:
    """One of the functions that are compared.

    Parameters
    ----------
    run
        What is timed.
    calls
        How many calls of the kernel that is; times are reported per call.
    settle
        Whether its threads keep the cores busy for a while afterwards.
    """

    run: Callable[[], object]
    calls: int = 1
    settle: bool = False


def interleave(contenders: Sequence[Timed], seconds: float) -> list[Spread]:
    """Seconds per call of every contender, median and quartiles.

    Everybody has a turn in every round, and nobody is always first. A turn is an untimed call and then timed
    ones for a fiftieth of a second, at least one. Rounds go on until each contender has had about `seconds`
    and `MIN_SAMPLES` samples.
    """
    samples: list[list[float]] = [[] for _ in contenders]
    turn_seconds = min(_TURN_SECONDS, seconds / MIN_SAMPLES)
    used, first = 0.0, 0
    while min(map(len, samples), default=MIN_SAMPLES) < MIN_SAMPLES or used < seconds * len(contenders):
        for turn in range(len(contenders)):
            index = (first + turn) % len(contenders)
            used += _turn(contenders[index], samples[index], turn_seconds)
        first += 1
    return [
        spread([sample / contender.calls for sample in found])
        for contender, found in zip(contenders, samples, strict=True)
    ]


def _turn(contender: Timed, samples: list[float], seconds: float) -> float:
    """Add samples; how long the turn took, without what follows it."""
    began = time.perf_counter()
    if not samples or samples[-1] < _LONG_SECONDS:
        contender.run()
    until = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        contender.run()
        now = time.perf_counter()
        samples.append(now - start)
        if now >= until:
            break
    if contender.settle:
        time.sleep(_SETTLE_SECONDS)
    return now - began
