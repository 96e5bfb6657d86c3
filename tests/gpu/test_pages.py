"""What the pages on GPU kernels show is what the build tables and the launchers say."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qspec_kernels.backends.cuda import hadamard_quantize_act
from qspec_kernels.hadamard_matrix import factor
from tests.gpu import build_table_cuda

pytest.importorskip("triton")

from qspec_kernels.backends.triton import _hadamard, attention
from tests.gpu import build_table

DOCS = Path(__file__).parents[2] / "docs"
MODULES = ("measured", "gpu_loops", "gpu_tables")
PAGES = sorted((DOCS / "explanation").glob("gpu_*.md"))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("gpu_tables")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name)
    return module


@pytest.fixture
def texts(tables: ModuleType) -> dict[str, str]:
    return tables.substitutions(
        {"triton": "1.0", "archs": build_table.read()}, {"nvrtc": "2.0", "archs": build_table_cuda.read()}
    )


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_the_pages_show_everything_and_nothing_else(texts: dict[str, str]) -> None:
    shown = [name for page in PAGES for name in re.findall(r"\{\{ (\w+) \}\}", page.read_text("utf-8"))]
    assert len(PAGES) >= 3
    assert set(shown) == set(texts)


def test_cells_are_those_of_the_build_tables(texts: dict[str, str]) -> None:
    entry = build_table.read()["90"]["attention bf16 bf16 32/8 x 128"]
    (row,) = (row for row in rows(texts["gpu_attention_archs"]) if row[0] == "sm_90")
    assert row[1:5] == [f"{entry[name]:,}" for name in ("registers", "stack", "shared", "instructions")]
    assert row[5].split(", ")[0].endswith(" HGMMA.64x16x16")
    assert int(row[6]) == entry["opcodes"]["LDGSTS"]
    linears = rows(texts["gpu_linear_w4a8"])
    assert {row[0].split()[0] for row in linears} == {"sm_80", "sm_90"}
    assert all("IMMA" in row[5] for row in linears)
    assert texts["gpu_triton"] == "1.0"


def test_bounds_are_bytes_over_bandwidth(texts: dict[str, str]) -> None:
    once, again = rows(texts["gpu_attention_bytes"])
    # 2 * 32 sequences * 8 heads * 4096 keys * 128 features * 2 bytes, at 3.35 and 4.8 TB/s
    assert once[:3] == ["1", "536.9", "0.5"]
    assert once[4:7] == ["537.4", "160", "112"]
    # 4 stretches of 4 * 32 tokens and 32 heads, 130 float32 numbers each, written and read
    assert again[3] == f"{2 * 4 * 128 * 32 * 130 * 4 / 1e6:.1f}"
    assert float(texts["gpu_attention_ratio"]) == pytest.approx(float(again[7]) / float(once[7]), abs=1e-3)
    assert rows(texts["gpu_hadamard_bytes"])[0] == ["4096", "1 x 4096", "50.3", "15", "10"]
    assert rows(texts["gpu_linear_bytes"])[0][2:] == ["8.7", "2.6", "1.8"]


def test_constants_are_the_launchers(tables: ModuleType) -> None:
    names = ("SPAN", "STRETCH", "MANY", "LANES", "PROGRAMS")
    assert [getattr(tables, name) for name in names] == [getattr(attention, name) for name in names]
    for width in tables.ROTATED:
        m = factor(width)[0]
        kernel = hadamard_quantize_act.kernel(width, width, m, width, bf16=True, aligned=True)
        assert kernel.threads == 32 * tables.cuda_warps(width)
        assert kernel.shared_bytes == tables.shared_bytes(width)
        assert _hadamard.plan(width, m).warps == tables.triton_warps(width)


def test_the_example_is_a_variant_that_is_built(tables: ModuleType) -> None:
    name = "attention bf16 bf16 32/8 x 128"
    (variant,) = (variant for variant in attention.variants(90) if variant.name == name)
    constants = variant.constexprs
    # what the page says of tiles, blocks and spans
    assert [constants[key] for key in ("TILE", "KEYS", "SPAN", "QUERIES")] == [64, 32, 256, 16]
    assert constants["QUERIES"] == tables.TILE_TOKENS
    (variant,) = (one for one in attention.variants(90) if one.name == "attention fp32 bf16 32/8 x 128")
    assert [variant.constexprs[key] for key in ("TILE", "PARTS", "QUERIES")] == [32, 3, 8]


def test_turns_of_loops_are_counted_for_the_same_work(tables: ModuleType, texts: dict[str, str]) -> None:
    triton, cuda = build_table.read(), build_table_cuda.read()
    turns = {row[0]: row[1:] for row in rows(texts["gpu_linear_turns"])}
    # a turn is for 2048 weights: eight instructions of 16 by 16, or a quarter of eight of 64 by 16
    float_linear = triton["90"]["linear_w4a16 bf16 g128 4096x4096 m=1"]["loop"]
    assert float_linear["opcodes"] == {"HGMMA.64x16x16.F32.BF16": 8}
    by_cuda = cuda["90"]["linear_w4a16 4096x4096 g128 m<=8"]["loop"]
    assert by_cuda["opcodes"] == {"HMMA.16816.F32.BF16": 8}
    assert turns["`linear_w4a16`"][2:] == [str(one["instructions"]) for one in (by_cuda, float_linear)]
    # here for half as many
    (half,) = triton["80"]["linear_mxfp4a8 i8 g32 4096x4096 m=1"]["loop"]["opcodes"].values()
    assert half == 2
    assert turns["`linear_mxfp4a8`"][1] == str(
        2 * triton["80"]["linear_mxfp4a8 i8 g32 4096x4096 m=1"]["loop"]["instructions"]
    )
    assert turns["`linear_w4a4`"][2] == "none"


def test_prompts_are_bound_by_products_or_by_issue(tables: ModuleType) -> None:
    turn = {"instructions": 640, "opcodes": {"IGMMA.64x128x32.S8.S8": 8}}
    hopper = {"linear_w4a8_prefill g128 28672x4096 m=4096": {"loop": turn}}
    # 8 * 64 * 128 * 32 products in 640 clocks, as many as 128 cubed; 128 * 128 sums, 4 instructions each
    found = tables.gpu_loops.prompt_bounds(hopper, "w4a8", 128, 4)
    assert found == ["64 x 128 x 32", "512", "640", "512", "1.60"]
