"""The drawing of decoding has every run of every batch size, at the rate that was measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from qspec_decode.bench import drawing, rates
from qspec_kernels import UsageError


def run(name: str, rate: float, draft: tuple[str, ...] = (), peer: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "weights": "bf16",
        "draft": list(draft),
        "peer": peer,
        "tokens_per_second": rate,
        "tokens_per_second_quartiles": [rate - 1, rate + 2],
    }


DOCUMENT: dict[str, Any] = {
    "machine": {"cpu": "CPU", "isa": "avx2", "threads": 2, "date": "2026-01-02T03:04:05", "commit": None},
    "scale": "1b",
    "batches": [
        {"batch": 1, "runs": [run("bf16 alone", 20.0), run("bf16 <- mxfp4, K=4", 40.0, ("mxfp4",))]},
        {"batch": 8, "runs": [run("bf16 alone", 90.0), run("transformers", 50.0, peer=True)]},
    ],
}


def test_every_run_is_a_bar_of_its_batch(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = rates.rates(DOCUMENT)
    drawn = {}
    for axes in figure.axes:
        names = [label.get_text() for label in axes.get_yticklabels()]
        bars = {name: bar.get_width() for name, bar in zip(names, axes.patches, strict=True)}
        drawn[axes.get_title()] = bars
        (whiskers,) = (c for c in axes.containers if hasattr(c, "has_xerr"))
        ends = [sorted(end[0] for end in segment) for segment in whiskers.lines[2][0].get_segments()]
        assert ends == [[rate - 1, rate + 2] for rate in bars.values()]
    assert drawn == {
        "batch 1": {"bf16 alone": 20.0, "bf16 <- mxfp4, K=4": 40.0},
        "batch 8": {"bf16 alone": 90.0, "transformers, bf16": 50.0},
    }
    colours = [bar.get_facecolor() for axes in figure.axes for bar in axes.patches]
    assert colours[0] == colours[2]
    assert len(set(colours)) == 3
    assert figure.get_suptitle() == "CPU, avx2, 2 threads, 2026-01-02, scale 1b"
    source, target = tmp_path / "decode.json", tmp_path / "rates.svg"
    source.write_text(json.dumps(DOCUMENT))
    drawing.write(rates.rates, source, target)
    assert target.read_text().lstrip().startswith("<?xml")


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(UsageError, match="nothing in the document was decoded"):
        rates.rates(DOCUMENT | {"batches": []})
