"""What the page "Measured on GPUs" shows is what files of `qspec bench gpu` say, or that there is none."""

import json
import re
from typing import Any

import pytest

from tests.bench.pages import DOCS, PAGE, docs, document, lines, row, run, tables
from tests.bench.standin import Standin, measured
from tests.bench.test_gpu_decoding import Bench, Fake

__all__ = ["docs"]


def test_without_a_file_nothing_is_measured(docs: Any) -> None:
    texts = docs.substitutions([])
    heading, *rows = lines(texts["gpu_figures"])
    assert heading == ["", "aim", "bound", "measured"]
    assert len(rows) == 13
    assert {cells[3] for cells in rows} == {"not measured"}
    assert {texts[name] for name in ("gpu_kernels", "gpu_decoding", "gpu_training")} == {"Not measured."}


def test_the_page_shows_everything_and_nothing_else(docs: Any) -> None:
    shown = re.findall(r"\{\{ (\w+) \}\}", PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(docs.substitutions([]))
    # what is committed can be drawn
    docs.substitutions([json.loads(path.read_text()) for path in (DOCS / "results").glob("gpu_bench_*.json")])


def cell(docs: Any, what: str, found: dict[str, Any]) -> str:
    """The measured part of the only line that says so."""
    (text,) = (cells[3] for cells in lines(docs.figures([found])) if what in cells[0])
    return text


def test_a_figure_is_the_worst_of_what_calls_take(docs: Any) -> None:
    # what comes in and goes out does not make a layer large
    slow, small_one = {"fraction_of_copy": 0.1}, {"weight_bytes": 31_000_000, "bytes": 40_000_000}
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
    assert lines(docs.figures([found, found]))[0] == ["", "aim", "bound", "GPU", "GPU"]


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
        run("transformers", 1, 80.0, graphs=None, peer=True, speedup_over={"bf16": {"median": 0.8}}),
        run("transformers", 4, 80.0, graphs=None, peer=True, speedup_over={"bf16": {"median": 1.6}}),
    )
    found = document(runs=runs)
    assert cell(docs, "8b `w4a16`, batch 1", found) == "2.10"
    assert cell(docs, "8b `bf16 <- mxfp4`", found) == "1.90"
    assert cell(docs, "8b `w4a16 <- w4a8`", found) == "1.20 / ?"
    assert cell(docs, "over transformers", found) == "1.25"


def test_what_failed_stands_before_everything_else(docs: Any) -> None:
    """Also where nothing was timed."""
    kinds = {kind: {"checked": 9, "failed": 0} for kind in ("error", "row", "graph", "opcheck", "compiled")}
    kinds["row"] = {"checked": 7, "failed": 1}
    wrong = {"op": "rope", "backend": "triton", "shape": "6/2 x 64", "m": 5, "failed": "row"}
    found = document()
    found["correctness"] = {"checked": 20, "kinds": kinds, "failures": [wrong], "unchecked": []}
    assert cell(docs, "checks that fail", found) == "0 of 9 / 1 of 7 / 0 of 9 / 0 of 9 / 0 of 9"
    said, listed, figures = docs.substitutions([found])["gpu_figures"].split("\n\n")
    assert said.startswith("**GPU, driver 1, ")
    assert said.endswith(": 1 of 20 checks failed and nothing was timed.**")
    assert lines(listed)[1:] == [["`rope` (triton)", "6/2 x 64", "5", "row"]]
    assert figures == docs.figures([found])
    found = document()
    found["correctness"] = {"checked": 20, "kinds": kinds, "failures": [], "unchecked": ["rope"]}
    found["failures"] = [{"what": "a task", "error": "RuntimeError: no"}] * 2
    found["decoding"]["unequal"] = [{"name": "bf16 <- mxfp4", "what": "a task"}] * 3
    said, _ = docs.substitutions([found])["gpu_figures"].split("\n\n")
    assert said.endswith(
        ": kernels that could not be timed: 2; texts that are not what they have to be: 3; "
        "checks left out: 1.**"
    )
    assert "RuntimeError: no" in "".join(docs.kernel_texts(found))


def test_a_backend_is_that_of_the_call(docs: Any) -> None:
    """Which kernel rotates depends on the width: of 4096 it is CUDA's, of 7168 = 28 * 256 Triton's."""
    rows = [
        row(
            "hadamard_quantize_act", f"8b {width}", 4096, 1.0, backend=backend,
            speedup_over={"copy_of_its_bytes": speed},
        )
        for width, backend, speed in (
            (4096, "cuda", 0.8), (4096, "triton", 0.1), (7168, "cuda", 0.2), (7168, "triton", 0.9)
        )
    ]  # fmt: skip
    assert cell(docs, "`hadamard_quantize_act`", document(*rows)) == "1.25"


def test_bounds_are_bytes_over_bandwidth_and_operations_over_rate(docs: Any) -> None:
    bound = {cells[0].split(",")[0]: cells[2] for cells in lines(docs.figures([]))}
    # 16 bits over 4.25; 256 operations of a weight at 0.62 * 989 TFLOPS take 0.70 times as long as 2 bytes
    assert bound["the same over cuBLAS in bf16"] == "3.76 / 3.76 / 2.86 / 1.43"
    # 128 operations of a weight at 0.62 * 989 TFLOPS over 4.125 bits; twice the rate
    assert bound["`w4a8` over `w4a16`"] == "1.36 / 2.00"
    assert bound["8b `bf16 <- mxfp4`"] == "2.01 at α = 0.9, 3.76 at 1"
    # c = 1 / 1.36 and v = 2, where all drafts stand
    assert bound["8b `w4a16 <- w4a8`"] == "0.73 / 0.80"


def test_a_trained_model_is_shown(docs: Any) -> None:
    accepted = {"per_token_acceptance": 0.81, "mean_acceptance_length": 3.2}
    pair = {"target": "bf16", "draft": "mxfp4"}
    made = {
        "command": "bench train",
        "gpu": "GPU",
        "machine": {"cpu": "CPU", "torch": "2", "date": "2026-01-02T03:04:05", "commit": None},
        "card": {"steps": 4000},
        "parameters": 126_000_000,
        "precisions": [{"precision": "bf16", "bits_per_byte": 1.23456}],
        "agreement": [{**pair, "top1": 0.9, "sampled": 0.88}],
        "acceptance": [{**pair, **accepted}],
    }
    text = docs.substitutions([], [made])["gpu_training"]
    heading, trained, *_ = text.split("\n\n")
    assert heading == "**GPU, torch 2, 2026-01-02**"
    assert trained == "126.0 million parameters, trained for 4000 steps."
    bits, drafts = tables(text).values()
    assert bits == [["", "bits per byte"], ["`bf16`", "1.2346"]]
    assert drafts[1:] == [["`bf16 <- mxfp4`", "0.900", "0.880", "0.810", "3.200"]]
    assert "**CPU, " in docs.substitutions([], [made | {"gpu": None}])["gpu_training"]


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
    both = over | {"w4a16": {"median": 0.97}}
    runs = (
        run("bf16 alone", 1, 50.0),
        run("bf16 <- mxfp4", 1, 94.0, speedup_over=over, **causes),
        run("bf16 <- mxfp4", 64, 940.0, speedup_over=both, of_record=False, not_of_record_because="too few"),
        run("bf16 alone", 1, 20.0, graphs=False),
        run("transformers", 1, 30.0, graphs=None, peer=True, speedup_over={"bf16": {"median": 0.6}}),
    )
    made = document(runs=runs)
    made["decoding"]["dropped"] = [{"what": what, "reason": "the budget was spent"} for what in ("x", "y")]
    made["decoding"]["skipped_peers"] = [{"peer": "transformers", "reason": "ImportError"}]
    made["decoding"]["unequal"] = [{"name": "bf16 <- mxfp4", "what": "a task"}]
    text = docs.substitutions([made])["gpu_decoding"]
    rates, speedups, over_both, graphs, why = tables(text).values()
    assert text.startswith("**GPU, driver 1, torch 2, triton 3, 2026-01-02, commit abc**\n")
    assert rates == [
        ["", "batch 1", "batch 64"],
        ["`bf16 alone`", "50", ""],
        ["`bf16 <- mxfp4`", "94", "940"],
        ["`bf16 alone`, without graphs", "20", ""],
        ["transformers, compiled", "30", ""],
    ]
    assert speedups[1:] == [["`bf16 <- mxfp4`", "1.88", r"1.88\*"]]
    assert over_both[1:] == [
        ["`bf16 <- mxfp4`", "1.88 / ?", "1.88 / 0.97"],
        ["transformers, compiled", "0.60 / ?", ""],
    ]
    assert graphs == [["", "batch 1"], ["`bf16 alone`", "2.50"]]
    assert why == [["", "batch 1"], ["`bf16 <- mxfp4`", "0.27; 1.05; 0.90"]]
    assert text.endswith(
        r"\* no figure of record: too few. Another text: bf16 <- mxfp4 in a task. "
        "Left out because the budget was spent: x; y. Without transformers: ImportError."
    )


@pytest.mark.usefixtures("small")
def test_what_the_command_writes_can_be_shown(docs: Any) -> None:
    made = measured(Standin(), ops=["linear_w4a16"], shapes=["256x64"])
    made["rows"] += measured(Standin(), ops=["hadamard_quantize_act", "attention"], rows=[4096])["rows"]
    made["decoding"] = Bench(Fake()).run(("8b",), (1, 64))
    texts = docs.substitutions([json.loads(json.dumps(made)), made | {"finished": False}])
    heading, *rows = lines(texts["gpu_figures"])
    assert heading == ["", "aim", "bound", "standin", "standin"]
    filled = [cells[0] for cells in rows if cells[3] != "not measured"]
    # what the stand-in times is small, and nothing of 4096 keys
    assert [what.split(",")[0].split(":")[0] for what in filled] == [
        "checks that fail",
        "`hadamard_quantize_act`",
        "8b `w4a16`",
        "8b plain `bf16`",
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
