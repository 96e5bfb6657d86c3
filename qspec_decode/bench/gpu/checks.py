"""Everything that is checked before anything is timed."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from qspec_decode.bench.gpu import cases, correctness, registered
from qspec_decode.bench.gpu.backends import refusal, serving
from qspec_decode.bench.gpu.correctness import Verdict
from qspec_decode.bench.gpu.device import Device
from qspec_kernels import UsageError

# after so many there is something wrong with the device, or with everything
_MOST_FAILURES = 20


def run(names: Sequence[str], device: Device, say: Callable[[str], None]) -> dict[str, Any]:
    """What became of these ops, as plain values for JSON; any `failures`, and nothing should be timed.

    Raises
    ------
    UsageError
        If no kernel of any of them runs on the device.
    """
    verdicts = _verdicts(names, device, say)
    kernels = [verdict for verdict in verdicts if verdict.backend != registered.BACKEND]
    return {
        "checked": len(verdicts),
        "failures": [verdict.to_dict() for verdict in verdicts if verdict.failed],
        "served": sorted({f"{verdict.op} ({verdict.backend})" for verdict in kernels}),
        "opchecked": sorted({one.op for one in verdicts if one.backend == registered.BACKEND}),
        "unserved": _unserved(names, device),
        "closest": _closest(kernels),
    }


def _verdicts(names: Sequence[str], device: Device, say: Callable[[str], None]) -> list[Verdict]:
    verdicts: list[Verdict] = []
    failures = 0
    for op in names:
        say(f"checking {op} ...")
        made = cases.cases(op)
        found = (verdict for case in made for verdict in correctness.check(device, case))
        checked = registered.check(device, made) if serving(device, op) else ()
        for verdict in itertools.chain(found, checked):
            verdicts.append(verdict)
            failures += bool(verdict.failed)
            if failures == _MOST_FAILURES:
                return verdicts
    if not verdicts:
        reasons = "; ".join(
            f"{one['op']} ({one['backend']}) {one['reason']}" for one in _unserved(names, device)
        )
        raise UsageError(
            f"no GPU kernel of {', '.join(names)} runs here: {reasons}",
            "pip install 'qspec[cuda]' brings the libraries.",
        )
    return verdicts


def _unserved(names: Sequence[str], device: Device) -> list[dict[str, str]]:
    """Backends that do not serve an op, and why."""
    return [
        {"op": op, "backend": backend, "reason": reason}
        for op in names
        for backend in device.backends
        if (reason := refusal(device, backend, op))
    ]


def _closest(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Of each op and backend the verdict that came nearest to its bound."""
    worst: dict[tuple[str, str], Verdict] = {}
    for verdict in verdicts:
        place = verdict.op, verdict.backend
        if place not in worst or _share(verdict) > _share(worst[place]):
            worst[place] = verdict
    return [verdict.to_dict() for verdict in worst.values()]


def _share(verdict: Verdict) -> float:
    return (verdict.error or 0.0) / verdict.bound if verdict.bound else 0.0
