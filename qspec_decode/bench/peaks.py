"""The bounds that kernels are held against, measured in turns with them."""

from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path

import torch

from qspec_decode import machine
from qspec_decode.bench.timing import Timed
from qspec_kernels import Workspace, compute_pass, read_pass

_LEAST_ROTATION = 1 << 30
_CACHES = 4
# several formats are rotated at once, and making them takes memory too
_SHARE_OF_MEMORY = 8
# as long as a call of a kernel: what interrupts short and long ones differs
_READ_AT_ONCE = 32 << 20
# some milliseconds
_ITERATIONS = 1_000_000


def last_level_cache(cpu: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Bytes of the largest cache of the first CPU; None where the system does not say."""
    sizes = [path.read_text().strip() for path in cpu.glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=None)


def rotation_bytes() -> int:
    """How much memory the copies of a weight take together, so that none of it is in a cache when its turn
    comes: over 1 GB and four times the largest cache, where there is as much."""
    wanted = max(_LEAST_ROTATION, _CACHES * (last_level_cache() or 0))
    available = machine.available_bytes()
    return wanted if available is None else min(wanted, available // _SHARE_OF_MEMORY)


def many_rows_bytes() -> int:
    """The same for calls with many rows, which take long: four times the largest cache."""
    return min(rotation_bytes(), _CACHES * (last_level_cache() or _LEAST_ROTATION // _CACHES))


@dataclass(frozen=True)
class Peak:
    """A bound as a contender: `amount` bytes or operations in each call of `timed`."""

    name: str
    timed: Timed
    amount: int


class Peaks:
    """Reading `num_bytes` of memory piece by piece, and computing in registers."""

    def __init__(self, num_bytes: int):
        self._num_bytes = max(num_bytes, 4) // 4 * 4
        self._workspace = Workspace()

    @cached_property
    def memory(self) -> Peak:
        """Bytes read; the memory is taken at first use."""
        data = torch.ones(self._num_bytes // 4, dtype=torch.int32)
        pieces = list(data.split(_READ_AT_ONCE // 4))
        pieces = pieces[:-1] if len(pieces) > 1 else pieces
        programs = []
        for piece in pieces:
            with self._workspace.record() as program:
                read_pass(piece)
            programs.append(program)
        turn = cycle(range(len(programs)))
        return Peak("memory", Timed(lambda: programs[next(turn)].replay()), pieces[0].nbytes)

    def compute(self, kind: str) -> Peak:
        """Operations of a kind of `qspec_kernels.compute_pass`."""
        with self._workspace.record() as program:
            operations = compute_pass(kind, _ITERATIONS)
        return Peak(kind, Timed(program.replay), operations)
