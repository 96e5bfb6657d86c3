"""Everything that is checked before anything is timed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from qspec_decode.bench.gpu import cases, correctness, fragments, registered
from qspec_decode.bench.gpu.backends import refusal
from qspec_decode.bench.gpu.case import first_and_last
from qspec_decode.bench.gpu.correctness import Verdict
from qspec_decode.bench.gpu.device import Device
from qspec_kernels import UsageError

# after so many there is something wrong with the device, or with everything
MOST_FAILURES = 20


def run(
    names: Sequence[str],
    device: Device,
    say: Callable[[str], None],
    more: Callable[[], bool] = lambda: True,
    prepare: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """What became of these ops, as plain values for JSON; any `failures`, and nothing should be timed.

    Fragments of matrix instructions come first; where they are others than kernels take for granted, no
    kernel is looked at.

    Parameters
    ----------
    more
        Whether there is time for more than the first and the last case of every op; what is left out, for
        this reason or after `MOST_FAILURES`, is in `unchecked`.
    prepare
        Has the kernels of these ops compiled.

    Raises
    ------
    UsageError
        If no kernel of any of them runs on the device.
    """
    verdicts, told = fragments.check(device, say)
    unchecked: list[str] = []
    if not any(verdict.failed for verdict in verdicts):
        prepare()
        found, unchecked = _verdicts(names, device, say, more)
        verdicts += found
    kernels = [verdict for verdict in verdicts if {*verdict.kinds} & {*correctness.KINDS}]
    return {
        "checked": len(verdicts),
        "kinds": {
            kind: {
                "checked": sum(kind in one.kinds for one in verdicts),
                "failed": sum(one.fails(kind) for one in verdicts),
            }
            for kind in (fragments.KIND, *correctness.KINDS, *registered.KINDS)
        },
        "fragments": told,
        "failures": [verdict.to_dict() for verdict in verdicts if verdict.failed],
        "unchecked": unchecked,
        "served": _served(kernels),
        "opchecked": _served(one for one in verdicts if registered.OPCHECK in one.kinds),
        "unserved": _unserved(names, device),
        "closest": _closest(kernels),
    }


def _served(verdicts: Iterable[Verdict]) -> list[str]:
    return sorted({f"{verdict.op} ({verdict.backend})" for verdict in verdicts})


def _verdicts(
    names: Sequence[str], device: Device, say: Callable[[str], None], more: Callable[[], bool]
) -> tuple[list[Verdict], list[str]]:
    """(what was found, what was left out)."""
    verdicts: list[Verdict] = []
    unchecked: list[str] = []
    failures = 0
    steps = _steps(names, device, more)
    for what, check in steps:
        if check is None:
            unchecked.append(what)
            continue
        say(f"checking {what} ...")
        for verdict in check:
            verdicts.append(verdict)
            failures += bool(verdict.failed)
            if failures == MOST_FAILURES:
                return verdicts, [*unchecked, *(what for what, _ in steps)]
    if not verdicts:
        reasons = "; ".join(
            f"{one['op']} ({one['backend']}) {one['reason']}" for one in _unserved(names, device)
        )
        raise UsageError(
            f"no GPU kernel of {', '.join(names)} runs here: {reasons}",
            "pip install 'qspec[cuda]' brings the libraries.",
        )
    return verdicts, unchecked


def _steps(
    names: Sequence[str], device: Device, more: Callable[[], bool]
) -> Iterator[tuple[str, Iterator[Verdict] | None]]:
    """What is checked, and how: nothing is timed of which not at least this was seen; then all else.

    None where there is no time left.
    """
    made = {op: cases.cases(op) for op in names}
    for op, some in made.items():
        for case in first_and_last(some):
            yield op, correctness.check(device, case)
    for op, some in made.items():
        for case in some[1:-1]:
            left = correctness.check(device, case) if more() else None
            yield f"{op} {case.shape}", left
    for op, some in made.items():
        yield f"{op} by PyTorch", registered.check(device, some) if more() else None


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
