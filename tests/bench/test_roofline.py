"""The drawing of a document has every kernel that has a bound, below its roof."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from qspec_decode.bench import drawing, roofline
from qspec_kernels import UsageError


def row(op: str, intensity: float, gflops: float, **changes: Any) -> dict[str, Any]:
    one = {"op": op, "operations": intensity * 100, "bytes": 100, "gflops": gflops}
    return {**one, "bound": "memory", "peer": False, **changes}


DOCUMENT = {
    "machine": {"cpu": "CPU", "isa": "avx2", "threads": 2, "date": "2026-01-02T03:04:05", "commit": "abc"},
    "bounds": {name: {"median": rate} for name, rate in (("memory", 20.0), ("bf16", 400.0), ("int8", 800.0))},
    "rows": [
        row("linear_w4a8", 4.0, 70.0),
        row("linear_w4a8", 100.0, 500.0, bound="int8"),
        row("torch_linear_bf16", 1.0, 15.0, peer=True),
        row("rmsnorm", 0.5, 9.0, bound=None),
    ],
}


def test_every_bound_kernel_is_drawn_below_its_roof(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    axes = roofline.roofline(DOCUMENT).axes[0]
    drawn = {line.get_label(): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert set(drawn) == {"linear_w4a8", "torch_linear_bf16"}
    assert drawn["linear_w4a8"].get_xydata().tolist() == [[4.0, 70.0], [100.0, 500.0]]
    assert drawn["torch_linear_bf16"].get_fillstyle() == "none"
    roofs = [line.get_xydata().tolist() for line in axes.lines if line not in drawn.values()]
    assert roofs == [
        [[0.5, 10.0], [20.0, 400.0], [200.0, 400.0]],
        [[0.5, 10.0], [40.0, 800.0], [200.0, 800.0]],
    ]
    assert axes.get_title() == "CPU, avx2, 2 threads, 2026-01-02, commit abc"
    source, target = tmp_path / "kernels.json", tmp_path / "roofline.svg"
    source.write_text(json.dumps(DOCUMENT))
    drawing.write(roofline.roofline, source, target)
    drawn_once = target.read_bytes()
    assert drawn_once.lstrip().startswith(b"<?xml")
    drawing.write(roofline.roofline, source, target)
    assert target.read_bytes() == drawn_once


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="drawing needs matplotlib") as error:
        roofline.roofline(DOCUMENT)
    assert "qspec[bench]" in error.value.hint


def test_nothing_to_draw_is_said() -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match="no kernel in the document has a bound"):
        roofline.roofline(DOCUMENT | {"rows": [row("rmsnorm", 0.5, 9.0, bound=None)]})
