"""Programs: the kernel calls of one forward pass, recorded once over fixed memory and replayed at will.

An op costs microseconds of Python before its kernel starts, which hundreds of kernels a decode step cannot
afford. Recording runs the model's own code once; replaying is one native call with nothing between kernels.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qspec_kernels import dispatch
from qspec_kernels.errors import QSpecError


class Program:
    """Recorded kernel calls. Made by `Workspace.record`; `len` is their number."""

    def __init__(self, recording: Any):
        self._recording = recording

    def __len__(self) -> int:
        return len(self._recording)

    def replay(self) -> None:
        """Run the kernels again, on what the memory they were recorded with holds now.

        Shapes, and the number of threads, are those of the recording. Values are not checked, except that
        ids, rows and positions outside their table or cache are refused.

        Raises
        ------
        UsageError
            An id, row or position is outside its table.
        """
        self._recording.replay()


class Workspace:
    """Memory that programs compute in. It is shared: what one program returns, the next may overwrite.

    Raises
    ------
    KernelUnavailable
        Where no native CPU kernels are loaded: programs are made of them.

    Examples
    --------
    >>> import torch
    >>> import qspec_kernels as qk
    >>> workspace = qk.Workspace()
    >>> x = workspace.empty((1, 4))
    >>> x[:] = 2.0
    >>> with workspace.record() as program:
    ...     out = workspace.result(qk.hadamard(x))
    >>> x[:] = torch.tensor([3.0, 0.0, 0.0, 0.0])
    >>> program.replay()
    >>> out.tolist()
    [[1.5, 1.5, 1.5, 1.5]]
    """

    def __init__(self) -> None:
        importlib.import_module("qspec_kernels.backends.cpp.library").load()
        self._calls = importlib.import_module("qspec_kernels.backends.cpp.calls")
        self._arena = self._calls.Arena()

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self._arena.num_bytes

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialised memory for an input of programs; it is the caller's until the tensor is dropped."""
        return self._arena.empty(tuple(shape), dtype)

    def result(self, tensor: Tensor) -> Tensor:
        """The same memory as a tensor that does not reserve it.

        What a program leaves there is good until another program is recorded or replayed.
        """
        return self._arena.borrow(tensor)

    @contextmanager
    def record(self, *, guarded: bool = True) -> Iterator[Program]:
        """Note the kernel calls of the block's ops, and run them at its end, unless it raises.

        Ops take a third of the time where no kernels run between them: a kernel that reads weights leaves
        nothing else in the processor's caches, Python least of all. `guarded` False leaves out the check for
        other computation, which takes longer than the rest: for code that was recorded before, with other
        shapes.

        Inputs that change between replays must lie in memory from `empty`; everything else that is read
        (weights, caches) is kept alive by the program.

        Raises
        ------
        QSpecError
            The block computes with something else than this package's ops: a replay would leave it out.
        """
        guard = _Guard(self._arena) if guarded else nullcontext()
        with dispatch.recorded(), self._calls.record(self._arena) as recording, guard:
            yield Program(recording)
        recording.replay()


class _Guard(TorchDispatchMode):
    """Refuses what would compute from the workspace's memory without being recorded."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether PyTorch wraps the mode against its compiler, which it imports for that at the first op.

        No: that takes more than a second, and nothing is compiled in here.
        """
        return False

    def __init__(self, arena: Any):
        super().__init__()
        self._arena = arena

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        returns = func._schema.returns
        is_view = bool(returns) and all(r.alias_info and not r.alias_info.is_write for r in returns)
        if not is_view:
            tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
            if any(self._arena.owns(tensor) for tensor in tensors):
                raise QSpecError(
                    f"{func} computes from memory of a program that is being recorded;"
                    " a replay would leave it out",
                    "Compute with the ops of qspec_kernels between record and the end of its block.",
                )
        return func(*args, **(kwargs or {}))
