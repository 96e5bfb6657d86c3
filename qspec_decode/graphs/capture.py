"""Running a round: as a captured CUDA graph, or called as it is where there is no GPU."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qspec_kernels import QSpecError

_WARM_UP = 2


class Called:
    """A function without arguments, called each time; what tests of control flow use.

    Parameters
    ----------
    function
        Returns a tensor, always of the same shape.
    """

    num_bytes = 0

    def __init__(self, function: Callable[[], Tensor]):
        self._function = function
        self._results: deque[Tensor] = deque()

    def launch(self) -> None:
        """Run it once more."""
        self._results.append(self._function())

    def result(self) -> Tensor:
        """The oldest result that has not been fetched."""
        return self._results.popleft().cpu()

    def forget(self) -> None:
        """Drop what has not been fetched."""
        self._results.clear()


class Captured:
    """A function without arguments as a CUDA graph, whose results come to the host in their own time.

    The function runs a few times before it is captured: that compiles its kernels, loads them and makes the
    workspaces of libraries, none of which may happen during capture. Results are copied to page-locked memory
    behind each launch, so that the host can launch the next ones before it waits for the first.

    Parameters
    ----------
    function
        Works on tensors that stay where they are and returns one, always of the same shape.
    pool
        Handle of the memory for what lives within a launch, shared by graphs that never run at the same time.
    depth
        Launches that may be under way.

    Raises
    ------
    QSpecError
        The function does what a graph cannot hold.
    """

    def __init__(self, function: Callable[[], Tensor], pool: Any, depth: int):
        for _ in range(_WARM_UP):
            function()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            # other threads may go on allocating meanwhile
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._out = function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise QSpecError(
                f"a decode round could not be captured as a CUDA graph: {error}",
                "enforce_eager=True runs it op by op.",
            ) from error
        torch.cuda.synchronize()
        self.num_bytes = max(0, free - torch.cuda.mem_get_info()[0])
        """Memory of the device that the graph took beyond what its pool had."""
        self._slots = [_pinned(self._out) for _ in range(depth)]
        self._events = [torch.cuda.Event() for _ in range(depth)]
        self._launched = self._fetched = 0

    def launch(self) -> None:
        """Run it once more; at most `depth` results may be waiting."""
        slot = self._launched % len(self._slots)
        self._graph.replay()
        self._slots[slot].copy_(self._out, non_blocking=True)
        self._events[slot].record()
        self._launched += 1

    def result(self) -> Tensor:
        """The oldest result that has not been fetched, once it is there; good until the next launch."""
        slot = self._fetched % len(self._slots)
        self._events[slot].synchronize()
        self._fetched += 1
        return self._slots[slot]

    def forget(self) -> None:
        """Drop what has not been fetched."""
        # a later launch must not write a slot before an earlier one has
        torch.cuda.current_stream().synchronize()
        self._fetched = self._launched


def _pinned(like: Tensor) -> Tensor:
    """Page-locked memory of the host, to which copies run beside everything else."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
