"""Timing graphs of calls in turns, with copying and reading of memory among them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qspec_decode.bench.gpu.device import Captured, Device
from qspec_decode.bench.record import Spread, spread
from qspec_decode.bench.turns import take_turns

ROUNDS = 9
# what the calls of a graph move at least, in caches: long beside what lies between graphs
_CACHES_OF_A_GRAPH = 8
_MOST_CALLS = 256


@dataclass(frozen=True)
class Contender:
    """A kernel, or a peer, ready to be called.

    Parameters
    ----------
    call
        Runs it on one copy of what it reads.
    copies
        How many there are; calls take one after the other.
    num_bytes, operations
        Of one call, operands counted once; a multiplication and an addition are two operations.
    check
        Raises a QSpecError where it computes something wrong.
    weight_bytes
        Of those bytes, the weight's, scales included; 0 where there is none.
    """

    op: str
    backend: str
    shape: str
    m: int
    call: Callable[[int], object]
    copies: int
    num_bytes: int
    operations: int
    check: Callable[[], None]
    peer: bool = False
    weight_bytes: int = 0

    @property
    def name(self) -> str:
        """The op and who runs it."""
        return f"{self.op} ({self.backend})"


def copies(device: Device, num_bytes: int) -> int:
    """How many copies take together more than twice the largest cache, the one in use left out."""
    return 2 + 2 * device.l2_bytes // max(num_bytes, 1)


class Bandwidth:
    """Copying and reading memory, each over more than any cache holds."""

    def __init__(self, device: Device):
        size = _CACHES_OF_A_GRAPH * device.l2_bytes // 4
        source = torch.ones(size, device=device.device)
        target = torch.empty_like(source)
        self.contenders = (
            self._contender("copy", lambda _: target.copy_(source), 2 * source.nbytes),
            self._contender("read", lambda _: source.amax(), source.nbytes),
        )

    @staticmethod
    def _contender(name: str, call: Callable[[int], object], num_bytes: int) -> Contender:
        return Contender(name, "torch", "", 0, call, 1, num_bytes, 0, lambda: None, peer=True)


def time_in_turns(device: Device, contenders: Sequence[Contender]) -> list[Spread]:
    """Seconds per call of each, median and quartiles of `ROUNDS` replays."""
    graphs, counts = [], []
    for contender in contenders:
        count = _calls(device, contender)
        graphs.append(_graph(device, contender, count))
        counts.append(count)
    samples: list[list[float]] = [[] for _ in contenders]
    for _, index in take_turns(range(len(contenders)), ROUNDS):
        samples[index].append(device.seconds(graphs[index].replay) / counts[index])
    return list(map(spread, samples))


def _calls(device: Device, contender: Contender) -> int:
    wanted = -(-_CACHES_OF_A_GRAPH * device.l2_bytes // contender.num_bytes)
    return max(contender.copies, min(_MOST_CALLS, wanted))


def _graph(device: Device, contender: Contender, count: int) -> Captured:
    def calls() -> None:
        for index in range(count):
            contender.call(index % contender.copies)

    # compiles and loads what a capture may not
    contender.call(0)
    return device.capture(calls)


def rows(device: Device, contenders: Sequence[Contender], bandwidth: Bandwidth) -> list[dict[str, Any]]:
    """What is known of each of them and of copying and reading in the same turns, for JSON."""
    times = time_in_turns(device, [*contenders, *bandwidth.contenders])
    rates = {
        one.op: one.num_bytes / time.median
        for one, time in zip(bandwidth.contenders, times[len(contenders) :], strict=True)
    }
    peers = {one.op: time.median for one, time in zip(contenders, times, strict=False) if one.peer}
    return [_row(one, time, rates, peers) for one, time in zip(contenders, times, strict=False)]


def _row(
    contender: Contender, time: Spread, rates: dict[str, float], peers: dict[str, float]
) -> dict[str, Any]:
    rate = contender.num_bytes / time.median
    return {
        "op": contender.op,
        "backend": contender.backend,
        "shape": contender.shape,
        "m": contender.m,
        "peer": contender.peer,
        "us": {"median": time.median * 1e6, "low": time.low * 1e6, "high": time.high * 1e6},
        "gb_per_second": rate / 1e9,
        "tflops": contender.operations / time.median / 1e12,
        "fraction_of_copy": rate / rates["copy"],
        "fraction_of_read": rate / rates["read"],
        "copy_gb_per_second": rates["copy"] / 1e9,
        "read_gb_per_second": rates["read"] / 1e9,
        "speedup_over": {} if contender.peer else {op: own / time.median for op, own in peers.items()},
        "bytes": contender.num_bytes,
        "weight_bytes": contender.weight_bytes,
        "operations": contender.operations,
        "copies": contender.copies,
    }
