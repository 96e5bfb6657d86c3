"""A drawing of `qspec bench decode --json`: tokens per second of every ladder, batch size by batch size.

python -m qspec_decode.bench.rates decode.json rates.svg
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qspec_decode.bench.drawing import caption, new_figure, write
from qspec_kernels import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR = 0.25
_COLOURS = {False: "C0", True: "C1", None: "0.7"}


def rates(document: Mapping[str, Any]) -> "Figure":
    """Tokens per second as bars, a panel for each batch size; quartiles as whiskers.

    Plain decoding, ladders and other programs have a colour each. The rate is that of all rows of a batch
    together.

    Raises
    ------
    UsageError
        Where matplotlib is not installed, or nothing in the document was decoded.
    """
    batches = [batch for batch in document["batches"] if batch["runs"]]
    if not batches:
        raise UsageError("nothing in the document was decoded", "Draw what qspec bench decode writes.")
    longest = max(len(batch["runs"]) for batch in batches)
    figure = new_figure(2.0 + 3.5 * len(batches), 1.5 + _BAR * longest)
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        runs = batch["runs"]
        medians = [run["tokens_per_second"] for run in runs]
        quartiles = [run["tokens_per_second_quartiles"] for run in runs]
        # quartiles of few calls may be interpolated past the median by a rounding error
        below = [max(0.0, median - low) for median, (low, _) in zip(medians, quartiles, strict=True)]
        above = [max(0.0, high - median) for median, (_, high) in zip(medians, quartiles, strict=True)]
        colours = [_COLOURS[None if run["peer"] else bool(run["draft"])] for run in runs]
        axes.barh(range(len(runs)), medians, xerr=[below, above], color=colours, error_kw={"lw": 0.8})
        # two runs may bear one name: another program reads the same weights in several formats
        names = [f"{run['name']}, {run['weights']}" if run["peer"] else run["name"] for run in runs]
        axes.set_yticks(range(len(runs)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel="tokens per second", title=f"batch {batch['batch']}", xlim=(0, None))
    figure.suptitle(f"{caption(document['machine'])}, scale {document['scale']}", fontsize=9)
    return figure


if __name__ == "__main__":
    write(rates, *map(Path, sys.argv[1:]))
