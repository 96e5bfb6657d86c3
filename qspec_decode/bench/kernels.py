"""`qspec bench kernels`: every kernel beside its bound and beside what people would use instead."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from qspec_decode.bench import linear_case, op_case, shapes
from qspec_decode.bench.contender import Contender
from qspec_decode.bench.facts import facts
from qspec_decode.bench.linear_case import LinearCase
from qspec_decode.bench.op_case import OpCase
from qspec_decode.bench.peaks import Peaks, many_rows_bytes, rotation_bytes
from qspec_decode.bench.record import Spread
from qspec_decode.bench.timing import Timed, interleave
from qspec_decode.progress import track
from qspec_kernels import UsageError, Workspace, rmsnorm

OPS = (*linear_case.OPS, *op_case.OPS)
DEFAULT_OPS = tuple(op for op in OPS if op != "linear_fp32")
_LINEARS = tuple(op for op in DEFAULT_OPS if op in linear_case.OPS)
SHAPES = ("llama-3.2-1b", "llama-3-8b", "qwen2.5-7b")
ROWS = (1, 4, 5, 8, 16, 64, 512)
SECONDS = 0.3
_PARTS = ("median", "low", "high")


@dataclass(frozen=True)
class Request:
    """What to time.

    Parameters
    ----------
    ops
        Of `OPS`; "linear" stands for all linears but fp32.
    shapes
        Names as `shapes.choose` takes them.
    rows
        M, the rows of the input.
    seconds
        That each contender gets on each shape and number of rows.
    rotation_bytes
        What the copies of one weight take together; by default more than any cache holds.

    Raises
    ------
    UsageError
        For an op or shape that is unknown, and for numbers below 1.
    """

    ops: Sequence[str] = DEFAULT_OPS
    shapes: Sequence[str] = SHAPES
    rows: Sequence[int] = ROWS
    seconds: float = SECONDS
    rotation_bytes: int | None = None

    def __post_init__(self) -> None:
        shapes.choose(self.shapes)
        unknown = [op for op in self.ops if op not in (*OPS, "linear")]
        if unknown:
            raise UsageError(f"unknown op {unknown[0]!r}", f"There are: linear, {', '.join(OPS)}.")
        if not self.rows or min(self.rows) < 1:
            raise UsageError(f"m is {list(self.rows)}; expected numbers of at least 1")
        if not self.seconds > 0:
            raise UsageError(f"seconds is {self.seconds}; expected more than 0")


def run(request: Request) -> dict[str, Any]:
    """Time everything, after checking that it computes the right thing; the document of `--json`.

    Raises
    ------
    KernelUnavailable
        Where no native CPU kernels are loaded.
    QSpecError
        Where one computes something wrong.
    """
    sizes = request.rotation_bytes or rotation_bytes(), request.rotation_bytes or many_rows_bytes()
    ops = [op for name in request.ops for op in (_LINEARS if name == "linear" else [name])]
    chosen = shapes.choose(request.shapes)
    cases = len(chosen.linears) * bool(set(ops) & set(linear_case.OPS))
    cases += len(chosen.models) * bool(set(ops) & set(op_case.OPS))
    if not cases:
        raise UsageError(
            f"{', '.join(request.shapes)} has no shape of {', '.join(request.ops)}",
            f"Ops between linears need a whole model: {', '.join(shapes.MODELS)}.",
        )
    peaks = Peaks(sizes[0])
    rows: list[dict[str, Any]] = []
    rates: dict[str, list[Spread]] = {}
    groups = _groups(chosen, ops, sizes, request.rows)
    for group in track(groups, cases * len(request.rows), "timing kernels"):
        rows += _measure(group, peaks, request.seconds, rates)
    bounds = {
        name: _as_json(Spread(*(statistics.median(getattr(r, part) for r in found) for part in _PARTS)))
        for name, found in rates.items()
    }
    return {
        "command": "bench kernels",
        "machine": facts(),
        "seconds": request.seconds,
        "rotation_bytes": {"up_to_16_rows": sizes[0], "more_rows": sizes[1]},
        "overhead_us": overhead(request.seconds),
        "bounds": bounds,
        "rows": rows,
    }


def overhead(seconds: float = SECONDS) -> dict[str, dict[str, float]]:
    """Microseconds that a call costs besides its kernel: as an op, as a program, and as a call of a program.

    A normalisation of 16 features takes next to no time, so what is measured is what it takes to get there.
    """
    x, gain = torch.ones(1, 16), torch.ones(16)
    programs = []
    for calls in (1, 64):
        with Workspace().record() as program:
            for _ in range(calls):
                rmsnorm(x, gain)
        programs.append(Timed(program.replay, calls))
    found = interleave([Timed(lambda: rmsnorm(x, gain)), *programs], seconds)
    names = ("op", "program_of_one", "call_in_a_program")
    return {name: _as_json(one, 1e6) for name, one in zip(names, found, strict=True)}


def _groups(
    chosen: shapes.Chosen, ops: Sequence[str], sizes: tuple[int, int], rows: Sequence[int]
) -> Iterator[list[Contender]]:
    """Contenders that are timed against each other: those of one shape and number of rows."""
    if set(ops) & set(linear_case.OPS):
        for shape in chosen.linears:
            linears = LinearCase(shape, ops, *sizes)
            yield from (linears.contenders(m) for m in rows)
            # before the next one's are made
            del linears
    if set(ops) & set(op_case.OPS):
        for model in chosen.models:
            others = OpCase(model, ops, *sizes)
            yield from (others.contenders(m) for m in rows)
            del others


def _measure(
    group: Sequence[Contender], peaks: Peaks, seconds: float, rates: dict[str, list[Spread]]
) -> list[dict[str, Any]]:
    """Rows of the document; what the bounds were meanwhile is added to `rates`."""
    for contender in group:
        contender.check()
    used = [peaks.memory, *(peaks.compute(kind) for kind in sorted({c.compute for c in group}))]
    times = interleave([*(c.timed for c in group), *(peak.timed for peak in used)], seconds)
    found = {
        # the fastest time is the highest rate
        peak.name: Spread(peak.amount / time.median, peak.amount / time.high, peak.amount / time.low)
        for peak, time in zip(used, times[len(group) :], strict=True)
    }
    for name, rate in found.items():
        rates.setdefault(name, []).append(rate)
    return [_row(c, time, found) for c, time in zip(group, times, strict=False)]


def _row(contender: Contender, time: Spread, rates: dict[str, Spread]) -> dict[str, Any]:
    memory = contender.num_bytes / rates["memory"].median
    compute = contender.operations / rates[contender.compute].median
    return {
        "op": contender.op,
        "shape": contender.shape,
        "m": contender.rows,
        "peer": contender.is_peer,
        "us": _as_json(time, 1e6),
        "gb_per_second": contender.num_bytes / time.median / 1e9,
        "gflops": contender.operations / time.median / 1e9,
        "bound": ("memory" if memory >= compute else contender.compute) if contender.from_memory else None,
        "fraction_of_bound": max(memory, compute) / time.median if contender.from_memory else None,
        "fraction_of_bandwidth": memory / time.median if contender.from_memory else None,
        "bytes": contender.num_bytes,
        "operations": contender.operations,
        "bandwidth_gb_per_second": rates["memory"].median / 1e9,
        "peak_gflops": rates[contender.compute].median / 1e9,
    }


def _as_json(spread: Spread, factor: float = 1e-9) -> dict[str, float]:
    return {name: value * factor for name, value in asdict(spread).items()}
