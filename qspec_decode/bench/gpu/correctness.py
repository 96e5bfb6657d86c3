"""Correct before fast: every kernel against float64 on the CPU, row by row, and replayed from a graph."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from qspec_decode.bench.gpu.backends import arguments, function, serving
from qspec_decode.bench.gpu.cases import ROWS, Case
from qspec_decode.bench.gpu.device import Device

COUNTS = (1, 2, 5, 17, ROWS)


@dataclass(frozen=True)
class Verdict:
    """What became of one case on one backend with `m` rows.

    Parameters
    ----------
    failed
        What is wrong; empty where nothing is: "error", "row" (one that depends on how many there are),
        "graph" (a replay that differs), or what was raised.
    error, bound
        The worst error, in the result's own units, and the most that is right; both 0 where results have to
        be equal bit for bit and are. None where the kernel raised, or a result is no number.
    """

    op: str
    backend: str
    shape: str
    m: int
    failed: str
    error: float | None
    bound: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Expected:
    """Results of all rows: what is right, and how far from it a result may be (0: not at all)."""

    exact: Tensor
    bound: float
    # half a step of the codes, [M, K]; None for anything else
    slack: Tensor | None = None


def check(device: Device, case: Case) -> Iterator[Verdict]:
    """Every backend that serves the case, with 64 rows first, whose rows the others must have."""
    expected = _expected(case)
    for backend in serving(device, case.op):
        whole: list[Tensor] | None = None
        for rows in sorted(COUNTS, reverse=True):
            verdict, found = _verdict(device, case, backend, rows, (expected, whole))
            whole = found if whole is None else whole
            yield verdict


def _verdict(
    device: Device, case: Case, backend: str, rows: int, right: tuple[list[Expected], list[Tensor] | None]
) -> tuple[Verdict, list[Tensor] | None]:
    expected, whole = right
    place = case.op, backend, case.shape, rows
    try:
        run = _Run(device, case, backend, rows)
        found = run.once()
        replayed = run.replayed()
    except Exception as error:  # whatever a kernel raises belongs into the table
        return Verdict(*place, f"{type(error).__name__}: {error}".splitlines()[0], None, None), None
    error, bound = _worst(case, found, expected, rows)
    # a NaN compares false
    failed = [] if error <= bound else ["error"]
    if whole is not None and not _same(found, [out[:rows] for out in whole]):
        failed.append("row")
    if not _same(found, replayed):
        failed.append("graph")
    return Verdict(*place, ", ".join(failed), _number(error), _number(bound)), found


class _Run:
    """A kernel and its arguments on the device."""

    find = staticmethod(function)

    def __init__(self, device: Device, case: Case, backend: str, rows: int):
        self._device, self._case = device, case
        self._function = self.find(backend, case.op)
        self._given = arguments(case.first(rows), backend, case.op, device.device)
        self._args = [one.clone() if isinstance(one, Tensor) else one for one in self._given]

    def once(self) -> list[Tensor]:
        """Results of a plain call, on the CPU."""
        self._reset()
        return self._results(self._function(*self._args))

    def replayed(self) -> list[Tensor]:
        """Results of a replay, over arguments as they were."""
        self._reset()
        captured = self._device.capture(lambda: self._function(*self._args))
        for out in _tensors(captured.out):
            # what a replay leaves out shows
            out.fill_(-1 if not out.is_floating_point() else torch.nan)
        self._reset()
        captured.replay()
        return self._results(captured.out)

    def _reset(self) -> None:
        for own, given in zip(self._args, self._given, strict=True):
            if isinstance(own, Tensor):
                own.copy_(given)

    def _results(self, out: Any) -> list[Tensor]:
        # results of what is written come before what is returned; no packed weight stands before them
        written = [self._args[place] for place in self._case.changed]
        return [one.detach().to("cpu", copy=True) for one in (*written, *_tensors(out))]


def _expected(case: Case) -> list[Expected]:
    cpu = torch.device("cpu")
    own = function("torch", case.op)
    if case.kind == "same":
        args = arguments(case.args, "torch", case.op, cpu)
        return [Expected(one, 0.0) for one in _outputs(case, own, args)]
    wide, narrow = (arguments(case.args, "torch", case.op, cpu, dtype) for dtype in (torch.float64, None))
    if case.kind == "codes":
        floats = case.floats
        assert floats is not None
        exact, low = floats(*wide), floats(*narrow)
        bits, group, _ = case.args[-3:]
        _, scales = own(*wide)
        slack = scales.repeat_interleave(group, 1)[:, : exact.shape[1]] / 2
        bound = _bound(low, exact, case.roundings)
        return [Expected(exact, bound, slack), Expected(scales, bound / (2 ** (bits - 1) - 1))]
    exact = _outputs(case, case.floats or own, wide)
    low = _outputs(case, own, narrow)
    return [
        Expected(right, _bound(rough, right, case.roundings)) for right, rough in zip(exact, low, strict=True)
    ]


def _bound(low: Tensor, exact: Tensor, roundings: int) -> float:
    """As `bench.gate.close` has it, for all rows at once."""
    # sums are float32 whatever the result is rounded to
    eps = torch.finfo(low.dtype).eps + (roundings - 1) * torch.finfo(torch.float32).eps
    finite = exact[exact.isfinite()].abs()
    return float(2 * ((low.double() - exact).abs().max() + eps * finite.max()))


def _outputs(case: Case, call: Callable[..., Any], args: list[Any]) -> list[Tensor]:
    out = call(*args)
    return [*(args[place] for place in case.changed), *_tensors(out)]


def _worst(
    case: Case, found: Sequence[Tensor], expected: Sequence[Expected], rows: int
) -> tuple[float, float]:
    """(error, bound) of the result that is furthest beyond its bound, or nearest to it."""
    if case.kind == "codes":
        codes, scales = found
        spread = scales.double().repeat_interleave(case.args[-2], 1)[:, : codes.shape[1]]
        found = codes.double() * spread, scales
    pairs = [
        (_error(out, right, right.exact[:rows], rows), right.bound)
        for out, right in zip(found, expected, strict=True)
    ]
    # NaN first, then whatever is furthest from its bound
    return max(pairs, key=lambda pair: (pair[0] != pair[0], pair[0] / pair[1] if pair[1] else pair[0]))


def _error(out: Tensor, right: Expected, exact: Tensor, rows: int) -> float:
    if right.bound == 0 and _same([out], [exact]):
        return 0.0
    if out.shape != exact.shape or (right.bound == 0 and out.dtype != exact.dtype):
        return math.inf
    off = (out.double() - exact.double()).abs()
    if right.slack is not None:
        off = (off - right.slack[:rows]).clamp(min=0)
    error = float(off.max())
    # zeros of another sign are not the same bits
    return math.inf if right.bound == error == 0 else error


def _same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Equal bit for bit."""
    return all(
        a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(left, right, strict=True)
    )


def _tensors(out: Any) -> list[Tensor]:
    return [] if out is None else list(out) if isinstance(out, tuple) else [out]


def _number(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
