"""`qspec bench gpu`: everything checked first, then timed, within a budget of seconds."""

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import torch

from qspec_decode.bench.facts import facts
from qspec_decode.bench.gpu import checks, timing
from qspec_decode.bench.gpu.decoding import Decoding
from qspec_decode.bench.gpu.device import Device, free
from qspec_decode.bench.gpu.kernel_plan import Task, tasks
from qspec_decode.bench.gpu.request import Request
from qspec_decode.bench.gpu.subject import Subject, demo_at
from qspec_decode.bench.gpu.timing import Bandwidth
from qspec_kernels import KernelUnavailable, QSpecError, UsageError

_PACKAGES = ("qspec", "triton", "cupy", "gemlite", "transformers")


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

    def passed() -> float:
        return clock() - began

    def added() -> None:
        document["seconds"] = passed()
        keep(document)

    found = checks.run(
        request.names,
        device,
        say,
        lambda: passed() < request.check_seconds,
        lambda: prepare(request.names, say),
    )
    failed = len(found["failures"])
    enough = failed >= checks.MOST_FAILURES
    left_out = f"{failed} had failed" if enough else "the checks' share of the budget was spent"
    document |= {
        "correctness": found | {"seconds": passed()},
        "rounds": timing.ROUNDS,
        "rows": [],
        "failures": [],
        "dropped": [{"what": f"checks of {what}", "reason": left_out} for what in found["unchecked"]],
        "skipped_peers": [],
    }
    added()
    if not found["failures"]:
        kernels = _Kernels(request, device, say, passed, document)
        kernels.time(request.kernels_until(passed()), added)
        if request.scales:
            decoding = Decoding(device, open_subject or partial(demo_at, device=device.device), say, passed)
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
        self._device, self._say, self._passed, self._document = device, say, passed, document
        self._waiting = tasks(request, device)
        self._bandwidth: Bandwidth | None = None

    def time(self, until: float, added: Callable[[], None]) -> None:
        """What can be begun before so many seconds have passed; `added` is called after each task."""
        while self._passed() < until:
            task = next(self._waiting, None)
            if task is None:
                return
            if task.num_bytes > self._device.memory_bytes:
                self._drop(task, f"it takes up to {task.num_bytes / 1e9:.1f} GB of memory")
                continue
            self._say(f"timing {task.what} ...")
            if not self._attempt(task):
                # not where it is caught: the error holds what was allocated
                free(self._device)
            added()

    def _attempt(self, task: Task) -> bool:
        """Whether a task could be timed; where not the document says why. Wrong results alone are raised."""
        try:
            self._time(task)
            return True
        except torch.OutOfMemoryError:
            self._drop(task, "there is not enough memory on the device")
        except (UsageError, KernelUnavailable) as error:
            self._drop(task, error.message)
        except QSpecError:
            raise
        # must not cost what is measured of others
        except Exception as error:
            self._document["failures"].append({"what": task.what, "error": _told(error)})
        return False

    def _time(self, task: Task) -> None:
        self._bandwidth = self._bandwidth or Bandwidth(self._device)
        found = _timed(self._device, task, self._bandwidth)
        for part in ("rows", "failures"):
            self._document[part] += found[part]
        # a peer, or a kernel of ours, may say the same of many tasks
        for part in ("skipped_peers", "dropped"):
            self._document[part] += [one for one in found[part] if one not in self._document[part]]

    def drop(self) -> None:
        """Say what is left."""
        for task in self._waiting:
            self._drop(task, "the budget was spent")

    def _drop(self, task: Task, reason: str) -> None:
        self._document["dropped"].append({"what": task.what, "reason": reason})


def _timed(device: Device, task: Task, bandwidth: Bandwidth) -> dict[str, list[dict[str, Any]]]:
    """What a task adds to the document, by its keys; what was made for it is freed.

    A contender that cannot be timed is left out alone, but for a wrong result, and where memory runs out.
    """
    contenders, skipped = task.make()
    ready, found = [], {"skipped_peers": list(skipped), "dropped": [], "failures": []}
    for contender in contenders:
        what = f"{contender.name} of {contender.shape}"
        try:
            contender.check()
            device.capture(partial(contender.call, 0))
            ready.append(contender)
        except Exception as error:
            if contender.peer:
                reason = f"{contender.shape}: {error}".splitlines()[0]
                found["skipped_peers"].append({"peer": contender.op, "reason": reason})
            elif isinstance(error, UsageError | KernelUnavailable):
                # what a shape needs, such as shared memory, the launcher alone knows
                found["dropped"].append({"what": what, "reason": error.message})
            elif isinstance(error, QSpecError | torch.OutOfMemoryError):
                raise
            else:
                found["failures"].append({"what": f"{what}, M = {contender.m}", "error": _told(error)})
    return found | {"rows": timing.rows(device, ready, bandwidth) if ready else []}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
