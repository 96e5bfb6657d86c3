"""What the drawings of measurements share: matplotlib, loaded at first use, and how they are written."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qspec_kernels import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches.

    Raises
    ------
    UsageError
        Where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "drawing needs matplotlib, which is not installed", "python -m pip install 'qspec[bench]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def caption(machine: Mapping[str, Any]) -> str:
    """What a measurement was taken on, from the field `machine` of its document."""
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    return f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads, {machine['date'][:10]}{commit}"


def write(draw: Callable[[Mapping[str, Any]], "Figure"], source: Path, target: Path) -> None:
    """Draw the document of one file into another, whose ending says how; an SVG is always the same bytes."""
    figure = draw(json.loads(source.read_text(encoding="utf-8")))
    if target.suffix != ".svg":
        figure.savefig(target)
        return
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "qspec"}):
        figure.savefig(target, metadata={"Date": None})
