"""`qspec bench gpu`: everything checked first, then timed, within a budget of seconds."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import torch

from qspec_decode.bench import shapes
from qspec_decode.bench.facts import facts
from qspec_decode.bench.gpu import checks, linear_case, op_case, timing
from qspec_decode.bench.gpu.decoding import Decoding
from qspec_decode.bench.gpu.device import Device
from qspec_decode.bench.gpu.linear_case import LinearCase, memory_needed
from qspec_decode.bench.gpu.request import Request
from qspec_decode.bench.gpu.subject import Subject, demo_at
from qspec_decode.bench.gpu.timing import Bandwidth, Contender
from qspec_decode.bench.shapes import LinearShape

# more rows than that come last
_FEW_ROWS = 128
_PACKAGES = ("qspec", "triton", "cupy", "gemlite", "transformers")


@dataclass(frozen=True)
class Task:
    """Contenders that are timed against each other, not yet made.

    Parameters
    ----------
    what
        For people, and for the list of what the budget dropped.
    make
        Makes them; (contenders, skipped peers).
    num_bytes
        Of memory, at most.
    """

    what: str
    make: Callable[[], tuple[list[Contender], list[dict[str, str]]]]
    num_bytes: int


def run(
    request: Request,
    device: Device,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    open_subject: Callable[[str], Subject] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
    prepare: Callable[[Sequence[str], Callable[[str], None]], None] = lambda *_: None,
) -> dict[str, Any]:
    """Check, then time kernels, then decode; the document of `--json`. With a wrong kernel nothing is timed.

    Parameters
    ----------
    open_subject
        Makes the model that decodes at a scale; None makes the demo's on the device.
    keep
        Is given the document whenever something was added to it; `finished` says whether that was the last.
    prepare
        Has kernels of ops compiled, and says so.
    """
    began = clock()
    document: dict[str, Any] = {
        "command": "bench gpu",
        "finished": False,
        "gpu": device.facts(),
        "machine": facts(),
        "versions": {"torch": torch.__version__, **_versions()},
        "budget_seconds": request.budget,
    }

    def added() -> None:
        document["seconds"] = clock() - began
        keep(document)

    prepare(request.names, say)
    found = checks.run(request.names, device, say)
    document |= {
        "correctness": found | {"seconds": clock() - began},
        "rounds": timing.ROUNDS,
        "rows": [],
        "dropped": [],
        "skipped_peers": [],
    }
    added()
    if not found["failures"]:
        kernels = _Kernels(request, device, say, lambda: clock() - began, document)
        kernels.time(request.kernel_seconds, added)
        if request.scales:
            decoding = Decoding(
                device, open_subject or partial(demo_at, device=device.device), say, kernels.passed
            )
            document["decoding"] = decoding.document
            decoding.run(request.scales, request.batches, request.budget, added)
        kernels.time(request.budget, added)
        kernels.drop()
    document["finished"] = True
    added()
    return document


@cache
def _versions() -> dict[str, str | None]:
    """Of what takes part; None where it is not installed."""
    # CuPy's wheels are named after the CUDA that they are for
    installed = packages_distributions()
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        names = [name for name in installed.get(package, ()) if package in name] or [package]
        try:
            found[package] = version(names[0])
        except PackageNotFoundError:
            found[package] = None
    return found


class _Kernels:
    """What is timed of kernels, as far as time reaches; it may go on later.

    Parameters
    ----------
    passed
        Seconds since the beginning.
    """

    def __init__(
        self,
        request: Request,
        device: Device,
        say: Callable[[str], None],
        passed: Callable[[], float],
        document: dict[str, Any],
    ):
        self._device, self._say, self.passed, self._document = device, say, passed, document
        self._waiting = tasks(request, device)
        self._bandwidth: Bandwidth | None = None
        self._skipped: dict[tuple[str, str], dict[str, str]] = {}

    def time(self, until: float, added: Callable[[], None]) -> None:
        """What can be begun before so many seconds have passed; `added` is called after each task."""
        while self.passed() < until:
            task = next(self._waiting, None)
            if task is None:
                return
            if task.num_bytes > self._device.memory_bytes:
                self._drop(task, f"it takes up to {task.num_bytes / 1e9:.1f} GB of memory")
                continue
            self._say(f"timing {task.what} ...")
            self._bandwidth = self._bandwidth or Bandwidth(self._device)
            rows, missing = _timed(self._device, task, self._bandwidth)
            self._document["rows"] += rows
            self._skipped |= {(one["peer"], one["reason"]): one for one in missing}
            self._document["skipped_peers"] = list(self._skipped.values())
            added()

    def drop(self) -> None:
        """Say what is left."""
        for task in self._waiting:
            self._drop(task, "the budget was spent")

    def _drop(self, task: Task, reason: str) -> None:
        self._document["dropped"].append({"what": task.what, "reason": reason})


def _timed(
    device: Device, task: Task, bandwidth: Bandwidth
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """(rows of the document, skipped peers); what was made for it is freed."""
    contenders, skipped = task.make()
    ready, missing = [], list(skipped)
    for contender in contenders:
        try:
            contender.check()
            if contender.peer:
                device.capture(partial(contender.call, 0))
            ready.append(contender)
        except Exception as error:
            if not contender.peer:
                raise
            reason = f"{contender.shape}: {error}".splitlines()[0]
            missing.append({"peer": contender.op, "reason": reason})
    return timing.rows(device, ready, bandwidth) if ready else [], missing


def tasks(request: Request, device: Device) -> Iterator[Task]:
    """What is timed: few rows of every shape, the smallest first; other ops; then many rows."""
    chosen = shapes.choose(request.shapes)
    ops = [op for op in linear_case.OPS if op in request.names]
    ordered = sorted(chosen.linears, key=lambda shape: shape.n * shape.k) if ops else []
    few, many = ([m for m in sorted(request.rows) if (m > _FEW_ROWS) == more] for more in (False, True))
    for shape in ordered:
        yield from _linears(device, shape, ops, few)
    for model in sorted(chosen.models, key=lambda model: model.hidden):
        if "attention" in request.names:
            size = 4 * request.batch * model.kv_heads * request.keys * model.head_dim
            yield Task(
                f"attention of {model.name}",
                lambda model=model: (op_case.attentions(device, model, request.keys, request.batch), []),
                4 * size,
            )
        if "hadamard_quantize_act" in request.names:
            for m in sorted(request.rows):
                for width in dict.fromkeys((model.hidden, model.intermediate)):
                    yield Task(
                        f"hadamard_quantize_act of {model.name} {width}, M = {m}",
                        lambda model=model, width=width, m=m: (op_case.rotation(device, model, width, m), []),
                        16 * m * width + 64 * device.l2_bytes,
                    )
    for shape in ordered:
        yield from _linears(device, shape, ops, many)


def _linears(device: Device, shape: LinearShape, ops: Sequence[str], rows: Sequence[int]) -> Iterator[Task]:
    """One task for each number of rows; they share the weights, which the first that is run makes."""
    made: list[LinearCase] = []

    def make(m: int) -> tuple[list[Contender], list[dict[str, str]]]:
        if not made:
            made.append(LinearCase(device, shape, ops))
        return list(made[0].contenders(m)), made[0].skipped

    for m in rows:
        activations = 64 * m * (shape.n + shape.k)
        needed = activations + (0 if made else memory_needed(device, shape))
        yield Task(f"linears of {shape.name}, M = {m}", lambda m=m: make(m), needed)
