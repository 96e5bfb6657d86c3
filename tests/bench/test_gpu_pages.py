"""What the page "Measured on GPUs" shows is what files of `qspec bench gpu` say, or that there is none."""

import importlib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qspec_kernels import UsageError
from tests.bench.standin import Standin, measured, small
from tests.bench.test_gpu_decoding import Bench, Fake

__all__ = ["small"]

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "explanation" / "measured_on_gpus.md"
MODULES = ("gpu_measured", "gpu_figures", "measured")


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
    one = {"op": op, "backend": "triton", "shape": shape, "m": m, "peer": False, "bytes": 40_000_000}
    one |= {"us": {"median": us, "low": us, "high": us}, "fraction_of_copy": 0.7, "speedup_over": {}}
    return {**one, **changes}


def run(name: str, batch: int, rate: float, **changes: Any) -> dict[str, Any]:
    one = {"name": name, "scale": "8b", "batch": batch, "graphs": True, "peer": False, "of_record": True}
    return {**one, "tokens_per_second": {"median": rate}, "speedup_over": {}, **changes}


def document(*rows: dict[str, Any], runs: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """A file of a device that there is none of."""
    made = {
        "gpu": {"name": "GPU", "driver": "1", "capability": "9.0"},
        "machine": {"date": "2026-01-02T03:04:05", "commit": "abc"},
    }
    made |= {"versions": {"torch": "2", "triton": "3"}, "finished": True, "rows": list(rows)}
    left_out = {"dropped": [], "skipped_peers": []}
    decoding = {"runs": list(runs), "max_new_tokens": 48, "unequal": [], "failures": [], **left_out}
    return {**made, **left_out, "decoding": decoding}


def test_without_a_file_nothing_is_measured(docs: Any) -> None:
    texts = docs.substitutions([])
    heading, *rows = lines(texts["gpu_figures"])
    assert heading == ["", "aim", "measured"]
    assert len(rows) == 11
    assert {cells[2] for cells in rows} == {"not measured"}
    assert texts["gpu_kernels"] == texts["gpu_decoding"] == "Not measured."


def test_the_page_shows_everything_and_nothing_else(docs: Any) -> None:
    shown = re.findall(r"\{\{ (\w+) \}\}", PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(docs.substitutions([]))
    # what is committed can be drawn
    docs.substitutions([json.loads(path.read_text()) for path in (DOCS / "results").glob("gpu_bench_*.json")])


def cell(docs: Any, what: str, found: dict[str, Any]) -> str:
    """The measured part of the only line that says so."""
    (text,) = (cells[2] for cells in lines(docs.figures([found])) if what in cells[0])
    return text


def test_a_figure_is_the_worst_of_what_calls_take(docs: Any) -> None:
    slow, small_one = {"fraction_of_copy": 0.1}, {"bytes": 1_000_000}
    rows = [
        row("linear_w4a16", "a", 1, 10.0, fraction_of_copy=0.61, backend="cuda"),
        row("linear_w4a16", "a", 1, 99.0, **slow),
        row("linear_mxfp4a8", "b", 16, 10.0, fraction_of_copy=0.66),
        row("linear_w4a16", "small", 1, 1.0, **slow, **small_one),
        row("linear_w4a16", "a", 32, 1.0, **slow),
        row("linear_w4a8", "a", 1, 1.0, **slow),
    ]
    assert cell(docs, "share of the bandwidth", document(*rows)) == "0.61"
    assert cell(docs, "share of the bandwidth", document(*reversed(rows))) == "0.61"
    assert cell(docs, "cuBLAS in bf16, M = 1 /", document(*rows)) == "not measured"


def test_figures_of_kernels(docs: Any) -> None:
    rows = [
        row("linear_w4a16", "a", 1, 10.0, speedup_over={"cublas_bf16": 3.0, "tinygemm": 2.0, "gemlite": 1.5}),
        row("linear_w4a16", "b", 1, 10.0, speedup_over={"cublas_bf16": 2.5, "tinygemm": 1.25}),
        row("linear_w4a16", "a", 8, 11.0),
        row("linear_w4a16", "b", 8, 10.5),
        row("linear_w4a16", "a", 64, 30.0, speedup_over={"cublas_bf16": 1.6}),
        row("linear_w4a8", "a", 64, 20.0),
        row("linear_w4a16_prefill", "a", 4096, 1.0, speedup_over={"cublas_bf16": 0.9}),
        row("linear_w4a8_prefill", "a", 4096, 1.0, speedup_over={"cublas_bf16": 1.4}),
        row("linear_w4a8_prefill", "b", 4096, 1.0, speedup_over={"cublas_bf16": 1.3}),
        row("linear_w4a16", "a", 4096, 1.0, speedup_over={"cublas_bf16": 0.1}),
        row("hadamard_quantize_act", "8b 8192", 4096, 1.0, speedup_over={"copy_of_its_bytes": 0.8}),
        row("hadamard_quantize_act", "8b 4096", 4096, 1.0, speedup_over={"copy_of_its_bytes": 1.0}),
        row("hadamard_quantize_act", "8b 14336", 4096, 1.0, speedup_over={"copy_of_its_bytes": 0.2}),
        row("hadamard_quantize_act", "8b 8192", 1, 1.0, speedup_over={"copy_of_its_bytes": 0.2}),
        row("attention", "8b q=1 kv=4096", 32, 200.0),
        row("attention", "8b q=4 kv=4096", 128, 212.0),
        row("attention", "70b q=4 kv=4096", 128, 900.0),
    ]
    found = document(*rows)
    for what, text in {
        "time at M = 8 / 16": "1.10 / ?",
        "cuBLAS in bf16, M = 1 / 16": "2.50 / ? / 1.60 / ?",
        "better of tinygemm": "1.25 / ?",
        "`w4a8` over `w4a16`": "1.50 / ?",
        "prompts of 4096": "0.90 / 1.30",
        "`hadamard_quantize_act`": "1.25",
        "attention": "1.06",
        "8b `w4a16`": "not measured",
    }.items():
        assert cell(docs, what, found) == text, what
    headings = [cells[2] for cells in lines(docs.figures([found, found]))][:1]
    assert headings == ["GPU"]


def test_figures_of_decoding(docs: Any) -> None:
    over = {"bf16": {"median": 1.9}, "w4a16": {"median": 1.2}}
    runs = (
        run("w4a16 alone", 1, 100.0, step_over_copy=2.1),
        run("w4a16 alone", 1, 50.0, step_over_copy=9.0, graphs=False),
        run("w4a16 alone", 4, 50.0, step_over_copy=9.0),
        run("bf16 <- mxfp4", 1, 100.0, speedup_over=over),
        run("bf16 <- mxfp4", 1, 100.0, speedup_over={"bf16": {"median": 0.5}}, scale="1b"),
        run("w4a16 <- w4a8", 64, 100.0, speedup_over=over),
        run("w4a16 <- w4a8", 128, 100.0, speedup_over={"bf16": {"median": 3.0}}),
    )
    found = document(runs=runs)
    assert cell(docs, "8b `w4a16`, batch 1", found) == "2.10"
    assert cell(docs, "8b `bf16 <- mxfp4`", found) == "1.90"
    assert cell(docs, "8b `w4a16 <- w4a8`", found) == "1.20 / ?"


def tables(text: str) -> dict[str, list[list[str]]]:
    """Tables by what is said before them."""
    parts = text.split("\n\n")
    return {said: lines(part) for said, part in itertools.pairwise(parts) if part.startswith("|")}


def test_kernels_become_medians_over_layers(docs: Any) -> None:
    rows = [
        row("linear_w4a16", shape, m, 1.0, fraction_of_copy=share, speedup_over={"cublas_bf16": over})
        for shape, m, share, over in (
            ("a", 1, 0.5, 2.0),
            ("b", 1, 0.7, 3.0),
            ("c", 1, 0.6, 2.2),
            ("a", 8, 0.4, 1.0),
        )
    ]
    rows.append(row("hadamard_quantize_act", "8b 4096", 8, 2.0, speedup_over={"copy_of_its_bytes": 0.8}))
    rows[3]["speedup_over"]["tinygemm"] = 1.5
    found = tables(docs.substitutions([document(*rows)])["gpu_kernels"])
    assert list(found.values()) == [
        [["", "M = 1", "M = 8"], ["`linear_w4a16` (triton)", "2.20", "1.00"]],
        [["", "M = 1", "M = 8"], ["`linear_w4a16` (triton)", "0.60", "0.40"]],
        [["", "M = 8"], ["`linear_w4a16` (triton)", "1.50"]],
        [
            ["", "M", "µs", "quartiles", "of the bandwidth of copying", "over a copy"],
            ["`hadamard_quantize_act` (triton), 8b 4096", "8", "2.0", "2.0 to 2.0", "0.70", "1.25"],
        ],
    ]
    assert "the median of a, b, c" in next(iter(found))


def test_decoding_becomes_tables_over_batches(docs: Any) -> None:
    causes = {"c": [0.27], "v": [1.05], "alpha": [0.9]}
    over = {"bf16": {"median": 1.876}}
    runs = (
        run("bf16 alone", 1, 50.0),
        run("bf16 <- mxfp4", 1, 94.0, speedup_over=over, **causes),
        run("bf16 <- mxfp4", 64, 940.0, speedup_over=over, of_record=False, not_of_record_because="too few"),
        run("bf16 alone", 1, 20.0, graphs=False),
        run("transformers", 1, 30.0, graphs=None, peer=True),
    )
    made = document(runs=runs)
    made["decoding"]["dropped"] = [{"what": what, "reason": "the budget was spent"} for what in ("x", "y")]
    made["decoding"]["skipped_peers"] = [{"peer": "transformers", "reason": "ImportError"}]
    made["decoding"]["unequal"] = [{"name": "bf16 <- mxfp4", "what": "a task"}]
    text = docs.substitutions([made])["gpu_decoding"]
    rates, speedups, graphs, why = tables(text).values()
    assert text.startswith("**GPU, driver 1, torch 2, triton 3, 2026-01-02, commit abc**\n")
    assert rates == [
        ["", "batch 1", "batch 64"],
        ["`bf16 alone`", "50", ""],
        ["`bf16 <- mxfp4`", "94", "940"],
        ["`bf16 alone`, without graphs", "20", ""],
        ["transformers, compiled", "30", ""],
    ]
    assert speedups[1:] == [["`bf16 <- mxfp4`", "1.88", r"1.88\*"]]
    assert graphs == [["", "batch 1"], ["`bf16 alone`", "2.50"]]
    assert why == [["", "batch 1"], ["`bf16 <- mxfp4`", "0.27; 1.05; 0.90"]]
    assert text.endswith(
        r"\* no figure of record: too few. Another text: bf16 <- mxfp4 in a task. "
        "Left out because the budget was spent: x; y. Without transformers: ImportError."
    )


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
    assert written == {"gpu_kernels.svg", "gpu_decoding.svg"}
    shown = re.findall(r"measured/(\w+\.svg)", "".join(docs.substitutions([found]).values()))
    assert set(shown) == written
    # what was not measured is not drawn
    assert docs.drawings(document(row("attention", "a", 1, 1.0), runs=runs[2:3])) == {}


@pytest.mark.parametrize(("drawing", "what"), [("kernels", "no linear"), ("decoding", "nothing")])
def test_nothing_to_draw_is_said(docs: Any, drawing: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        getattr(docs, drawing)(document())


@pytest.mark.usefixtures("small")
def test_what_the_command_writes_can_be_shown(docs: Any) -> None:
    made = measured(Standin(), ops=["linear_w4a16"], shapes=["256x64"])
    made["rows"] += measured(Standin(), ops=["hadamard_quantize_act", "attention"], rows=[4096])["rows"]
    made["decoding"] = Bench(Fake()).run(("8b",), (1, 64))
    texts = docs.substitutions([json.loads(json.dumps(made)), made | {"finished": False}])
    heading, *rows = lines(texts["gpu_figures"])
    assert heading == ["", "aim", "standin", "standin"]
    filled = [cells[0] for cells in rows if cells[2] != "not measured"]
    # what the stand-in times is small, and nothing of 4096 keys
    assert [what.split(",")[0] for what in filled] == [
        "`hadamard_quantize_act`",
        "8b `w4a16`",
        "8b `bf16 <- mxfp4`",
        "8b `w4a16 <- w4a8`",
    ]
    decoded = tables(texts["gpu_decoding"])
    (rates,) = (rows for said, rows in decoded.items() if "tokens a second" in said)
    assert {"`bf16 <- mxfp4`", "`bf16 <- mxfp4`, without graphs", "transformers, compiled"} <= {
        cells[0] for cells in rates
    }
    (graphs,) = (rows for said, rows in decoded.items() if "without." in said)
    assert all(number == "2.00" for cells in graphs[1:] for number in cells[1:])
    assert texts["gpu_kernels"].count("cut short") == 1
