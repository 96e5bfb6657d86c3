"""What the documentation shows of measurements is what their files say."""

import copy
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "explanation" / "how_fast.md"
MACHINE = {
    "cpu": "CPU",
    "isa": "avx2",
    "threads": 2,
    "date": "2026-01-02T03:04:05",
    "commit": "abc",
    "torch": "2",
}


@pytest.fixture(scope="module")
def measured() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measured", DOCS / "measured.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(op: str, m: int, us: float, **changes: Any) -> dict[str, Any]:
    one = {"op": op, "shape": "64x32", "m": m, "peer": op.startswith("torch"), "us": {"median": us}}
    one |= {"bound": "memory", "fraction_of_bound": 0.5, "gflops": 8.0}
    one |= {"bytes": 4_000_000, "operations": 8_000_000}
    return {**one, "bandwidth_gb_per_second": 20.0, "peak_gflops": 100.0, **changes}


KERNELS = {
    "machine": MACHINE,
    "seconds": 0.25,
    "bounds": {"memory": {"median": 20.0}, "int8": {"median": 100.0}},
    "rows": [
        row("linear_mxfp4a8", 1, 400.0),
        row("linear_w4a8", 1, 250.0),
        row("torch_int4pack", 1, 500.0),
        row("linear_mxfp4a8", 8, 1600.0, operations=64_000_000, bound="int8", fraction_of_bound=0.4),
        row("linear_w4a8", 8, 300.0, bound=None, fraction_of_bound=None),
        row("torch_int4pack", 8, 900.0),
    ],
}
STEP = {"model": "target", "precision": "bf16", "tokens_per_row": 1, "draft": False}
STEP |= {"seconds": 0.0456, "bytes_per_second": 31e9, "fraction_of_read_bandwidth": 0.91}
OTHER_PASSES = [
    STEP | other | {"seconds": 9.0} for other in ({"tokens_per_row": 5}, {"model": "small"}, {"draft": True})
]
RUN = {
    "tokens_per_second": 20.0,
    "weights": "bf16",
    "peer": False,
    "draft": [],
    "tokens_per_second_quartiles": [19.0, 21.0],
}
LADDER = {
    "name": "bf16 <- mxfp4, K=4",
    "draft": ["mxfp4"],
    "speedup": 1.876,
    "speedup_quartiles": [1.7, 2.0],
    "predicted_speedup": 1.95,
    "measured_over_predicted": 0.963,
    "formula_speedup": None,
    "c": [0.27, 0.1],
    "v": [1.05],
    "alpha": [0.9],
}
DECODING = {
    "machine": MACHINE,
    "scale": "1b",
    "note": "A note.",
    "num_prompts": 16,
    "max_new_tokens": 48,
    "skipped_peers": [{"peer": "llama-server", "reason": "llama-server is not on PATH"}],
    "batches": [
        {
            "batch": 4,
            "passes": [STEP, *OTHER_PASSES],
            "outside_kernels": [{"precision": "bf16", "outside_seconds": 0.00123}],
            "runs": [
                {**RUN, "name": "bf16 alone", "of_record": True},
                {**RUN, "name": "llama.cpp", "weights": "q4_0", "peer": True, "of_record": True},
                {**RUN, **LADDER, "of_record": True},
            ],
        }
    ],
}


def test_kernels_become_tables_of_op_over_m(measured: ModuleType) -> None:
    texts = measured.kernel_texts(KERNELS)
    assert texts["kernels_us"].splitlines() == [
        "|  | M = 1 | M = 8 |",
        "| --- | ---: | ---: |",
        "| `linear_mxfp4a8` | 400 | 1600 |",
        "| `linear_w4a8` | 250 | 300 |",
        "| `torch_int4pack` | 500 | 900 |",
    ]
    assert texts["kernels_bound"].splitlines()[2:] == [
        "| `linear_mxfp4a8` | 0.50 | 0.40 of int8 |",
        "| `linear_w4a8` | 0.50 |  |",
    ]
    assert texts["kernels_peers"].splitlines()[2:] == ["| `linear_w4a8` | 2.00 | 3.00 |"]
    assert texts["kernels_machine"] == "CPU, avx2, 2 threads, 2026-01-02, commit abc; torch 2"


def test_the_example_divides_what_was_measured(measured: ModuleType) -> None:
    texts = measured.shared_texts(KERNELS, DECODING)
    # 4 MB at 20 GB/s; 8 and 64 million operations at 100 GFLOPS
    assert (texts["one_mb"], texts["one_bandwidth"], texts["one_memory_us"]) == ("4.0", "20.0", "200")
    assert (texts["one_gop"], texts["one_compute_us"], texts["one_fraction"]) == ("0.008", "80", "0.50")
    assert (texts["many_memory_us"], texts["many_compute_us"]) == ("200", "640")
    assert (texts["many_us"], texts["many_fraction"], texts["most_rows"]) == ("1600", "0.40", "8")


def test_decoding_becomes_tables_of_runs(measured: ModuleType) -> None:
    texts = measured.decoding_texts(DECODING)
    assert texts["decode_plain"].splitlines()[2:] == [
        "| `bf16` | 4 | 20.0 | 45.6 | 31.0 | 0.91 | 1.23 |",
        "| llama.cpp, q4_0 | 4 | 20.0 |  |  |  |  |",
    ]
    ladder = "| `bf16 <- mxfp4, K=4` | 4 | 20.0 | 1.88 | 1.70 to 2.00 | 1.95 | 0.96 |"
    assert texts["decode_ladders"].splitlines()[2:] == [ladder + "  | 0.27; 0.10 | 1.05 | 0.90 |"]
    left_out = "Left out: llama-server. llama-server is not on PATH"
    assert texts["decode_remarks"] == f"All figures are figures of record. {left_out}"


def test_figures_that_do_not_count_are_marked_with_the_reason(measured: ModuleType) -> None:
    document = copy.deepcopy(DECODING)
    for run in document["batches"][0]["runs"]:
        run |= {"of_record": False, "not_of_record_because": "too few prompts"}
    texts = measured.decoding_texts(document)
    assert r"| 1.88\* |" in texts["decode_ladders"]
    assert texts["decode_remarks"].startswith(r"\* no figure of record: too few prompts. Left out: ")


def test_the_page_shows_everything_and_nothing_else(measured: ModuleType) -> None:
    documents = {path.name: measured.load(path) for path in (DOCS / "results").glob("cpu_*.json")}
    machines = {"kernels": measured.KERNELS, "decode": measured.DECODING}
    assert set(documents) == {f"cpu_{kind}_{one}.json" for kind, those in machines.items() for one in those}
    for document in documents.values():
        assert all(document["machine"][field] for field in ("cpu", "isa", "threads", "date", "commit"))
    shown = re.findall(r"\{\{ (\w+) \}\}", PAGE.read_text(encoding="utf-8"))
    # where the example speaks of many rows it tells neither again
    texts = measured.substitutions(DOCS / "results")
    assert set(shown) == set(texts) - {"many_mb", "many_bandwidth"}


def test_what_the_page_says_once_holds_for_every_machine(measured: ModuleType) -> None:
    results = DOCS / "results"
    kernels = [measured.load(results / f"cpu_kernels_{one}.json") for one in measured.KERNELS]
    decoding = [measured.load(results / f"cpu_decode_{one}.json") for one in measured.DECODING]
    assert len({document["seconds"] for document in kernels}) == 1
    cases = {frozenset((row["shape"], row["m"]) for row in document["rows"]) for document in kernels}
    assert len(cases) == 1
    assert {m for _, m in cases.pop()} >= {1, 4, 8, 512}
    for field in ("scale", "note", "num_prompts", "max_new_tokens", "quant_lm_head"):
        assert len({document[field] for document in decoding}) == 1, field


def test_drawings_are_made_where_the_page_looks_for_them(measured: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured.draw(DOCS / "results", tmp_path / "new")
    drawn = {path.name for path in (tmp_path / "new").iterdir()}
    shown = re.findall(r"\]\(\.\./_build/measured/(\S+)\)", PAGE.read_text(encoding="utf-8"))
    assert drawn == set(shown)
    assert len(drawn) == len(measured.KERNELS) + len(measured.DECODING)
