"""What is timed: a kernel or a peer on one shape, ready to run, and what it should cost."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

from qspec_decode.bench.timing import Timed
from qspec_kernels import Workspace

# kernels this small are recorded several times in one program, so that replaying it costs nothing beside them
_BYTES_OF_A_PROGRAM = 4 << 20
_MOST_CALLS = 64


@dataclass(frozen=True)
class Contender:
    """One kernel, or one peer, on one shape and number of rows.

    Parameters
    ----------
    op
        Name of the op, such as "linear_w4a8"; of the library and its function for a peer.
    shape
        Name of the shape.
    rows
        M: rows of the input, tokens.
    num_bytes, operations
        Of one call, operands counted once; a multiplication and an addition are two operations.
    compute
        The kind of `qspec_kernels.compute_pass` that bounds it.
    check
        Raises where it computes something wrong.
    from_memory
        Whether memory bounds it: weights and caches come from there, while activations were just written by
        the kernel before and lie in caches.
    """

    op: str
    shape: str
    rows: int
    timed: Timed
    num_bytes: int
    operations: int
    compute: str
    check: Callable[[], None]
    from_memory: bool = True
    is_peer: bool = False


class Rotation:
    """Copies of one operand, which calls take one after the other.

    Contenders that read the same copies share one rotation, so that a copy is read again only after all the
    others were.

    Parameters
    ----------
    num_bytes
        Of one copy.
    count
        Copies there are.
    """

    def __init__(self, num_bytes: int, count: int):
        self.calls = max(1, min(_MOST_CALLS, _BYTES_OF_A_PROGRAM // max(num_bytes, 1), count))
        starts = range(0, max(count - count % self.calls, 1), self.calls)
        self._groups = [range(start, start + self.calls) for start in starts]
        self._turn = cycle(range(len(self._groups)))

    def recorded(self, workspace: Workspace, call: Callable[[int], object]) -> Timed:
        """`call(copy)` as a decode step runs it: by replaying programs."""
        programs = []
        for group in self._groups:
            with workspace.record() as program:
                for copy in group:
                    call(copy)
            programs.append(program)
        return Timed(lambda: programs[next(self._turn)].replay(), self.calls)

    def called(self, call: Callable[[int], object]) -> Timed:
        """`call(copy)` as Python calls it, with threads of PyTorch's."""

        def run() -> None:
            for copy in self._groups[next(self._turn)]:
                call(copy)

        return Timed(run, self.calls, settle=True)
