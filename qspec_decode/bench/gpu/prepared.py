"""Kernels compiled by several processes at once, before one process checks them.

There are hundreds, and compiling them one by one takes minutes. Every backend keeps what it has compiled on
disk, where the process that measures finds it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from multiprocessing import get_context

from qspec_decode.bench.gpu import correctness
from qspec_decode.bench.gpu.cases import Case, cases
from qspec_decode.bench.gpu.device import Device, Gpu

MOST_PROCESSES = 8
# an op's cases are shared out among so many tasks
PARTS = 4


def processes() -> Executor:
    """As many as there are cores, up to `MOST_PROCESSES`: each has the device, too, and memory on it."""
    # a process that has used the device cannot be forked
    return ProcessPoolExecutor(
        min(MOST_PROCESSES, len(os.sched_getaffinity(0))), mp_context=get_context("spawn")
    )


def prepare(
    ops: Sequence[str],
    say: Callable[[str], None],
    open_device: Callable[[], Device] = Gpu,
    pool: Callable[[], Executor] = processes,
) -> None:
    """Have what is checked of these ops compiled.

    What fails is left to the checks: they compile what they need, and report it.
    """
    say("compiling ...")
    try:
        with pool() as executor:
            list(executor.map(partial(_compile, open_device), product(ops, range(PARTS))))
    # no second process may use the device, or there is no memory for it
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        say(f"compiling one by one, for several at once failed: {reason}")


def _compile(open_device: Callable[[], Device], task: tuple[str, int]) -> None:
    op, part = task
    for case in _cases(op)[part::PARTS]:
        correctness.call(_device(open_device), case)


@cache
def _cases(op: str) -> list[Case]:
    return cases(op)


@cache
def _device(open_device: Callable[[], Device]) -> Device:
    return open_device()
