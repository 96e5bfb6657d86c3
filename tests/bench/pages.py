"""The modules that the documentation has its texts from, and files of `qspec bench gpu` made up for them."""

import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "explanation" / "measured_on_gpus.md"
MODULES = ("gpu_measured", "gpu_figures", "gpu_bounds", "gpu_tables", "measured")


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module that conf.py takes the page's texts from."""
    monkeypatch.syspath_prepend(str(DOCS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("gpu_measured")
    for name in MODULES:
        sys.modules.pop(name, None)


def lines(text: str) -> list[list[str]]:
    """Cells of a table, its heading first."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [found[0], *found[2:]]


def row(op: str, shape: str, m: int, us: float, **changes: Any) -> dict[str, Any]:
    one = {"op": op, "backend": "triton", "shape": shape, "m": m, "peer": False, "weight_bytes": 40_000_000}
    one |= {"us": {"median": us, "low": us, "high": us}, "fraction_of_copy": 0.7, "speedup_over": {}}
    return {**one, **changes}


def run(name: str, batch: int, rate: float, **changes: Any) -> dict[str, Any]:
    one = {"name": name, "scale": "8b", "batch": batch, "graphs": True, "peer": False, "of_record": True}
    return {**one, "tokens_per_second": {"median": rate}, "speedup_over": {}, **changes}


def document(*rows: dict[str, Any], runs: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """A file of a device that there is none of."""
    made: dict[str, Any] = {
        "command": "bench gpu",
        "gpu": {"name": "GPU", "driver": "1", "capability": "9.0"},
        "machine": {"date": "2026-01-02T03:04:05", "commit": "abc"},
    }
    made |= {"versions": {"torch": "2", "triton": "3"}, "finished": True, "rows": list(rows)}
    left_out = {"dropped": [], "skipped_peers": []}
    decoding = {"runs": list(runs), "max_new_tokens": 48, "unequal": [], "failures": [], **left_out}
    return {**made, **left_out, "decoding": decoding}


def tables(text: str) -> dict[str, list[list[str]]]:
    """Tables by what is said before them."""
    parts = text.split("\n\n")
    return {said: lines(part) for said, part in itertools.pairwise(parts) if part.startswith("|")}
