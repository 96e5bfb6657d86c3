"""Correct before fast: every kernel against float64 on the CPU, row by row, and replayed from a graph."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from qspec_decode.bench.gpu.backends import arguments, function, serving
from qspec_decode.bench.gpu.cases import ROWS, Case
from qspec_decode.bench.gpu.device import Device
from qspec_kernels import PackedWeight

# rows that are held against float64 and replayed from graphs; rows that are held against those of all 64
COUNTS = (1, 2, 5, 17, ROWS)
EVERY = range(1, ROWS + 1)
# what a kernel is checked for: how far it is from float64, that a row does not depend on how many there are,
# and that a replay gives what the call gave
KINDS = ("error", "row", "graph")
# rows that between them have everything compiled that those need
TILES = (1, 2, 16, 17, ROWS)


@dataclass(frozen=True)
class Verdict:
    """What became of one case on one backend with `m` rows.

    Parameters
    ----------
    failed
        What is wrong; empty where nothing is: some of `kinds`, or what was raised.
    error, bound
        The worst error, in the result's own units, and the most that is right; both 0 where results have to
        be equal bit for bit and are. None where the kernel raised, where a result is no number, and where
        rows alone were compared.
    kinds
        What was looked at: of `KINDS`, or of `registered.KINDS`.
    """

    op: str
    backend: str
    shape: str
    m: int
    failed: str
    error: float | None
    bound: float | None
    kinds: tuple[str, ...]

    def fails(self, kind: str) -> bool:
        """Whether something of a kind is wrong: where something was raised, all that was looked at."""
        named = [one for one in self.kinds if one in self.failed.split(", ")]
        return bool(self.failed) and kind in (named or self.kinds)

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
    """Every backend that serves the case, with 64 rows first, whose rows all other calls must have."""
    expected = _expected(case)
    for backend in serving(device, case.op):
        run = _Run(device, case, backend)
        for rows in (*sorted(EVERY, reverse=True), *case.repeated):
            yield _verdict(run, rows, expected if rows in COUNTS else None)


def call(device: Device, case: Case) -> None:
    """Have everything compiled that the case needs; what is wrong with it shows when it is checked."""
    for backend in serving(device, case.op):
        run = _Run(device, case, backend)
        for rows in (*TILES, *case.repeated):
            with contextlib.suppress(Exception):
                run.results(rows)


def _verdict(run: "_Run", rows: int, expected: list[Expected] | None) -> Verdict:
    """Without `expected` rows alone are compared."""
    failed: list[str] = []
    error = bound = None
    try:
        found = run.results(rows)
        if expected is not None:
            error, bound = _worst(run.case, [one.cpu() for one in found], expected, rows)
            # a NaN compares false
            if not error <= bound:
                failed.append("error")
        if rows == ROWS:
            run.whole = found
        elif not run.has_rows(found, rows):
            failed.append("row")
        if expected is not None and not same(found, run.replayed(rows)):
            failed.append("graph")
    except Exception as raised:  # whatever a kernel raises belongs into the table
        failed, error, bound = [f"{type(raised).__name__}: {raised}".splitlines()[0]], None, None
    case = run.case
    kinds = tuple(kind for kind in KINDS if (rows != ROWS if kind == "row" else expected is not None))
    told = ", ".join(failed), _number(error), _number(bound)
    return Verdict(case.op, run.backend, case.shape, rows, *told, kinds)


class _Run:
    """A kernel and its arguments on the device; `whole` is what it made of all rows."""

    find = staticmethod(function)

    def __init__(self, device: Device, case: Case, backend: str):
        self.case, self.backend, self._device = case, backend, device
        self.whole: list[Tensor] | None = None
        self._function = self.find(backend, case.op)

    def results(self, rows: int) -> list[Tensor]:
        """Of a plain call."""
        args = self._arguments(rows)
        return self._results(args, self._function(*args))

    def replayed(self, rows: int) -> list[Tensor]:
        """Of a replay, over arguments as they were."""
        args = self._arguments(rows)
        captured = self._device.capture(lambda: self._function(*args))
        for out in tensors(captured.out):
            # what a replay leaves out shows
            out.fill_(-1 if not out.is_floating_point() else torch.nan)
        for own, given in zip(args, self._arguments(rows), strict=True):
            if isinstance(own, Tensor):
                own.copy_(given)
        captured.replay()
        # the graph's memory goes with it
        return [one.clone() for one in self._results(args, captured.out)]

    def has_rows(self, found: Sequence[Tensor], rows: int) -> bool:
        """Whether results are those of all rows: the first of them, or all again and again."""
        return self.whole is None or same(found, [_rows(one, rows) for one in self.whole])

    @cached_property
    def _given(self) -> list[Any]:
        return arguments(self.case.args, self.backend, self.case.op, self._device.device)

    @cached_property
    def _by_row(self) -> set[int]:
        """Places in `_given`, where a packed weight is two arguments."""
        places = itertools.accumulate(1 + isinstance(one, PackedWeight) for one in self.case.args)
        flat = [0, *places]
        return {flat[place] for place in self.case.by_row}

    def _arguments(self, rows: int) -> list[Any]:
        """A copy: ops may write into them."""
        taken = [_rows(one, rows) if place in self._by_row else one for place, one in enumerate(self._given)]
        return [one.clone() if isinstance(one, Tensor) else one for one in taken]

    def _results(self, args: Sequence[Any], out: Any) -> list[Tensor]:
        # results of what is written come before what is returned; no packed weight stands before them
        return [*(args[place] for place in self.case.changed), *tensors(out)]


def _rows(one: Tensor, rows: int) -> Tensor:
    """The first rows, or all of them again and again."""
    return one[:rows] if rows <= ROWS else torch.cat([one] * -(-rows // ROWS))[:rows]


def _expected(case: Case) -> list[Expected]:
    cpu = torch.device("cpu")
    own = function("torch", case.definition)
    if case.kind == "same":
        args = arguments(case.args, "torch", case.definition, cpu)
        return [Expected(one, 0.0) for one in _outputs(case, own, args)]
    wide, narrow = (
        arguments(case.args, "torch", case.definition, cpu, dtype) for dtype in (torch.float64, None)
    )
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
    return [*(args[place] for place in case.changed), *tensors(out)]


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
    if right.bound == 0 and same([out], [exact]):
        return 0.0
    if out.shape != exact.shape or (right.bound == 0 and out.dtype != exact.dtype):
        return math.inf
    off = (out.double() - exact.double()).abs()
    if right.slack is not None:
        off = (off - right.slack[:rows]).clamp(min=0)
    error = float(off.max())
    # zeros of another sign are not the same bits
    return math.inf if right.bound == error == 0 else error


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Equal bit for bit."""
    return all(
        a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(left, right, strict=True)
    )


def tensors(out: Any) -> list[Tensor]:
    """Results of a kernel, as a list."""
    return [] if out is None else list(out) if isinstance(out, tuple) else [out]


def _number(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None
