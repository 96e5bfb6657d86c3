"""Drawings of what `qspec bench gpu` wrote."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qspec_kernels import UsageError
from tests.bench.pages import docs, document, row, run

__all__ = ["docs"]


def test_drawings_have_every_line_and_the_page_shows_them(docs: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        row("linear_w4a16", shape, m, 1.0, fraction_of_copy=share, speedup_over={"cublas_bf16": over})
        for shape, m, share, over in (("a", 1, 0.5, 2.0), ("b", 1, 0.7, 3.0), ("a", 8, 0.4, 1.0))
    ]
    rows.append(row("linear_w4a8", "a", 1, 1.0, backend="cuda"))
    rows.append(row("attention", "a", 1, 1.0))
    runs = (
        run("bf16 alone", 1, 50.0),
        run("bf16 alone", 4, 150.0),
        run("bf16 alone", 1, 20.0, graphs=False),
        run("bf16 <- mxfp4", 1, 90.0, scale="1b"),
        run("transformers", 1, 30.0, graphs=None, peer=True),
    )
    found = document(*rows, runs=runs)

    def drawn(figure: Any) -> list[dict[str, tuple[list[float], list[float]]]]:
        panels = ({line.get_label(): line.get_data() for line in axes.lines} for axes in figure.axes)
        return [
            {name: (list(x), list(y)) for name, (x, y) in lines.items() if not name.startswith("_")}
            for lines in panels
        ]

    share, speed = drawn(docs.kernels(found))
    assert share == {"linear_w4a16 (triton)": ([1, 8], [0.6, 0.4]), "linear_w4a8 (cuda)": ([1], [0.7])}
    assert speed == {"linear_w4a16 (triton)": ([1, 8], [2.5, 1.0])}
    eight, one = drawn(docs.decoding(found))
    assert eight == {"bf16 alone": ([1, 4], [50.0, 150.0]), "transformers": ([1], [30.0])}
    assert one == {"bf16 <- mxfp4": ([1], [90.0])}

    results = tmp_path / "results"
    results.mkdir()
    (results / "gpu_bench_some.json").write_text(json.dumps(found))
    docs.draw(results, tmp_path)
    written = {path.name for path in tmp_path.glob("*.svg")}
    assert written == {f"gpu_2026_01_02t03_04_05_{name}.svg" for name in ("kernels", "decoding")}
    shown = re.findall(r"measured/(\w+\.svg)", "".join(docs.substitutions([found]).values()))
    assert set(shown) == written
    # what was not measured is not drawn
    assert docs.drawings(document(row("attention", "a", 1, 1.0), runs=runs[2:3])) == {}


@pytest.mark.parametrize(("drawing", "what"), [("kernels", "no linear"), ("decoding", "nothing")])
def test_nothing_to_draw_is_said(docs: Any, drawing: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        getattr(docs, drawing)(document())
