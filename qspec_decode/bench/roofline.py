"""A drawing of `qspec bench kernels --json`: every kernel under the roof of its machine.

python -m qspec_decode.bench.roofline kernels.json roofline.svg
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qspec_decode.bench.drawing import caption, new_figure, write
from qspec_kernels import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def roofline(document: Mapping[str, Any]) -> "Figure":
    """Operations per second over operations per byte, a colour for each op, hollow for peers.

    Only kernels that memory or arithmetic bounds are drawn, below the medians of what was measured as bounds.

    Raises
    ------
    UsageError
        Where matplotlib is not installed, or nothing in the document can be drawn.
    """
    rows = [row for row in document["rows"] if row["bound"]]
    if not rows:
        raise UsageError("no kernel in the document has a bound", "Time linears, attention or rescore.")
    figure = new_figure(9.0, 5.5)
    axes = figure.add_subplot(xscale="log", yscale="log")
    ops = list(dict.fromkeys(row["op"] for row in rows))
    for number, op in enumerate(ops):
        own = [row for row in rows if row["op"] == op]
        axes.plot(
            [row["operations"] / row["bytes"] for row in own],
            [row["gflops"] for row in own],
            "o",
            color=f"C{number % 10}",
            fillstyle="none" if own[0]["peer"] else "full",
            markersize=5,
            label=op,
        )
    bandwidth = document["bounds"]["memory"]["median"]
    intensities = [row["operations"] / row["bytes"] for row in rows]
    left, right = min(intensities) / 2, max(intensities) * 2
    for kind, peak in document["bounds"].items():
        if kind != "memory":
            knee = min(max(peak["median"] / bandwidth, left), right)
            axes.plot([left, knee, right], [left * bandwidth, knee * bandwidth, peak["median"]], "k-", lw=0.8)
            axes.annotate(
                f"{kind}: {peak['median']:.0f} GFLOPS", (right, peak["median"]), ha="right", va="bottom"
            )
    axes.annotate(f"memory: {bandwidth:.0f} GB/s", (left, left * bandwidth), ha="left", va="bottom")
    axes.set(xlabel="operations per byte", ylabel="GFLOPS", xlim=(left, right))
    axes.set_title(caption(document["machine"]), fontsize=9)
    axes.legend(fontsize=7, loc="lower right")
    return figure


if __name__ == "__main__":
    write(roofline, *map(Path, sys.argv[1:]))
