"""Drawings of `qspec bench gpu --json`: linears over the number of tokens, decoding over the batch.

python -m qspec_decode.bench.gpu.plots gpu.json kernels.svg decoding.svg
"""

import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qspec_decode.bench.drawing import new_figure, write
from qspec_kernels import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# a line: its points by place, its style
_Lines = dict[str, tuple[dict[int, float], str]]


def linears(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows of linears, which `kernels` draws."""
    return [row for row in document["rows"] if row["op"].startswith("linear_")]


def decoded(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Runs that `decoding` draws: with CUDA graphs, or of other programs."""
    runs = (document.get("decoding") or {"runs": []})["runs"]
    return [run for run in runs if run["graphs"] is not False]


def kernels(document: Mapping[str, Any]) -> "Figure":
    """Linears of every backend over M, medians of layers: share of copying's bandwidth, speed over cuBLAS.

    Raises
    ------
    UsageError
        Where matplotlib is not installed, or no linear was measured.
    """
    rows = linears(document)
    if not rows:
        raise UsageError("no linear of the document was measured", "Draw what qspec bench gpu --json writes.")
    figure = new_figure(11.0, 5.0)
    share, speed = figure.subplots(1, 2)
    _draw(share, _medians((row, row["fraction_of_copy"]) for row in rows))
    share.set(xlabel="tokens (M)", ylabel="of the bandwidth of copying", ylim=(0, None))
    _draw(speed, _medians((row, row["speedup_over"].get("cublas_bf16")) for row in rows))
    speed.set(xlabel="tokens (M)", ylabel="speed over cuBLAS in bf16", yscale="log")
    speed.axhline(1.0, color="0.5", lw=0.8)
    share.legend(fontsize=7)
    figure.suptitle(_caption(document), fontsize=9)
    return figure


def decoding(document: Mapping[str, Any]) -> "Figure":
    """Tokens per second over the batch, a panel for each model; with CUDA graphs where a run can have them.

    Raises
    ------
    UsageError
        Where matplotlib is not installed, or nothing was decoded.
    """
    runs = decoded(document)
    if not runs:
        raise UsageError("nothing in the document was decoded", "Draw what qspec bench gpu --json writes.")
    scales = list(dict.fromkeys(run["scale"] for run in runs))
    figure = new_figure(5.5 * len(scales), 5.0)
    for axes, scale in zip(figure.subplots(1, len(scales), squeeze=False)[0], scales, strict=True):
        lines: _Lines = {}
        for run in (run for run in runs if run["scale"] == scale):
            style = ":" if run["peer"] else "-" if "<-" in run["name"] else "--"
            points, _ = lines.setdefault(run["name"], ({}, style))
            points[run["batch"]] = run["tokens_per_second"]["median"]
        _draw(axes, lines)
        axes.set(title=scale, xlabel="batch", ylabel="tokens per second", yscale="log")
        axes.legend(fontsize=7)
    figure.suptitle(_caption(document), fontsize=9)
    return figure


def _medians(values: Iterable[tuple[Mapping[str, Any], float | None]]) -> _Lines:
    found: dict[str, dict[int, list[float]]] = {}
    for row, value in values:
        if value is not None:
            of_op = found.setdefault(f"{row['op']} ({row['backend']})", {})
            of_op.setdefault(row["m"], []).append(value)
    return {
        name: ({m: statistics.median(some) for m, some in points.items()}, ":" if "_prefill" in name else "-")
        for name, points in found.items()
    }


def _draw(axes: "Axes", lines: _Lines) -> None:
    for name, (points, style) in lines.items():
        places = sorted(points)
        axes.plot(places, [points[place] for place in places], style, marker="o", ms=3, lw=1, label=name)
    places = sorted({place for points, _ in lines.values() for place in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, map(str, places), fontsize=8)


def _caption(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    return f"{document['gpu']['name']}, {machine['date'][:10]}{commit}"


if __name__ == "__main__":
    source, *targets = map(Path, sys.argv[1:])
    for draw, target in zip((kernels, decoding), targets, strict=False):
        write(draw, source, target)
