"""What is aimed at on GPUs, what bounds it, and how far files of `qspec bench gpu` come, line by line."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gpu_bounds as bounds
from measured import Document, table

from qspec_kernels import largest_block, preferences
from qspec_kernels.hadamard_matrix import factor

NOT_MEASURED = "not measured"
Row = Mapping[str, Any]

# bytes of weights that count where bandwidth is the bound
_LARGE = 32e6
_FOUR_BITS = ("linear_w4a16", "linear_mxfp4a16", "linear_mxfp4a8")


def figures(documents: Sequence[Document]) -> str:
    """What is aimed at beside what each document has, the worst of all layers."""
    found = [Found(one) for one in documents]
    names = [one["gpu"]["name"] for one in documents] or ["measured"]
    rows = (
        [one.what, one.aim, one.bound, *(map(one.cell, found) if found else [NOT_MEASURED])]
        for one in FIGURES
    )
    return table(["", "aim", "bound", *names], rows)


def served(document: Document) -> dict[tuple[str, str, int], Row]:
    """Rows of kernels by op, shape and M: of each the backend that calls of the op take."""
    major, minor = map(int, document["gpu"]["capability"].split("."))

    def place(row: Row) -> int:
        return preferences.backends(row["op"], (major, minor), _sizes(row)).index(row["backend"])

    ours = sorted((row for row in document["rows"] if not row["peer"]), key=place, reverse=True)
    return {(row["op"], row["shape"], row["m"]): row for row in ours}


def _sizes(row: Row) -> tuple[int, ...] | None:
    """Those of a call that the choice of a backend may depend on."""
    if row["op"] != "hadamard_quantize_act":
        return None
    width = int(row["shape"].split()[-1])
    return width, factor(largest_block(width))[0]


class Found:
    """Ratios in one document, one for each layer."""

    def __init__(self, document: Document):
        self.kinds: Mapping[str, Mapping[str, int]] = document.get("correctness", {}).get("kinds", {})
        self._rows = served(document)
        self._runs = document.get("decoding", {"runs": ()})["runs"]

    def large(self, op: str, m: int) -> list[Row]:
        """Kernels of an op on layers whose weights are large."""
        return [row for row in self._of(op, m) if row["weight_bytes"] >= _LARGE]

    def over_peer(self, op: str, m: int, peer: str) -> list[float]:
        """Speed over that of a peer."""
        return [row["speedup_over"][peer] for row in self._of(op, m) if peer in row["speedup_over"]]

    def over_best(self, op: str, m: int, peers: Sequence[str]) -> list[float]:
        """Speed over that of the best of several peers."""
        ratios = ([row["speedup_over"].get(peer) for peer in peers] for row in self._of(op, m))
        return [min(known) for one in ratios if (known := [ratio for ratio in one if ratio])]

    def times(self, row: Row, op: str, shape: str, m: int) -> list[float]:
        """Time of a kernel over another one's, where that was measured."""
        other = self._rows.get((op, shape, m))
        return [row["us"]["median"] / other["us"]["median"]] if other else []

    def growth(self, m: int) -> list[float]:
        """Time with M rows over the time with one, on large layers."""
        return [
            ratio
            for op in _FOUR_BITS
            for row in self.large(op, m)
            for ratio in self.times(row, op, row["shape"], 1)
        ]

    def integers(self, m: int) -> list[float]:
        """Speed of w4a8 over w4a16."""
        return [
            ratio
            for row in self._of("linear_w4a16", m)
            for ratio in self.times(row, "linear_w4a8", row["shape"], m)
        ]

    def rotations(self) -> list[float]:
        """Time of hadamard_quantize_act with 4096 rows over that of a copy."""
        return [
            1 / row["speedup_over"]["copy_of_its_bytes"]
            for row in self._of("hadamard_quantize_act", 4096)
            if int(row["shape"].split()[-1]) <= 8192
        ]

    def queries(self) -> list[float]:
        """Time of attention with four queries over that with one."""
        return [
            ratio
            for (op, shape, m), row in self._rows.items()
            if op == "attention" and shape.endswith("q=4 kv=4096") and m == 4 * 32
            for ratio in self.times(row, op, shape.replace("q=4", "q=1"), m // 4)
        ]

    def runs(self, name: str, batch: int) -> list[Row]:
        """What decoded at 8b with graphs."""
        wanted = (name, "8b", batch, True)
        return [
            run for run in self._runs if (run["name"], run["scale"], run["batch"], run["graphs"]) == wanted
        ]

    def faster(self, name: str, batch: int) -> list[float]:
        """Speed of a ladder over plain decoding of its target."""
        target = name.split()[0]
        return [
            run["speedup_over"][target]["median"]
            for run in self.runs(name, batch)
            if target in run["speedup_over"]
        ]

    def over_others(self, peer: str, batch: int) -> list[float]:
        """Speed of plain decoding in bf16 over that of another program."""
        return [
            1 / run["speedup_over"]["bf16"]["median"]
            for run in self._runs
            if (run["name"], run["scale"], run["batch"]) == (peer, "8b", batch)
            and "bf16" in run["speedup_over"]
        ]

    def _of(self, op: str, m: int) -> list[Row]:
        return [row for (name, _, rows), row in self._rows.items() if (name, rows) == (op, m)]


@dataclass(frozen=True)
class Checks:
    """The line of what was found wrong before anything was timed."""

    what: str
    aim: str
    bound: str
    kinds: Sequence[str]

    def cell(self, found: Found) -> str:
        """How many failed of how many, kind by kind."""
        if not found.kinds:
            return NOT_MEASURED
        return " / ".join("{failed} of {checked}".format(**found.kinds[kind]) for kind in self.kinds)


@dataclass(frozen=True)
class Figure:
    """A line: the parts have a number each, the worst of what `ratios` gives for them."""

    what: str
    aim: str
    bound: str
    parts: Sequence[Any]
    ratios: Callable[[Found, Any], list[float]]
    worst: Callable[[Iterable[float]], float] = min

    def cell(self, found: Found) -> str:
        """A number for each part; a question mark where some were measured and this one was not."""
        ratios = [self.ratios(found, part) for part in self.parts]
        if not any(ratios):
            return NOT_MEASURED
        return " / ".join(f"{self.worst(one):.2f}" if one else "?" for one in ratios)


FIGURES = (
    Checks(
        "checks that fail: against float64 / rows in other company / graphs / `opcheck` / `torch.compile`",
        "0",
        "0",
        ("error", "row", "graph", "opcheck", "compiled"),
    ),
    Figure(
        "`w4a16` and `mxfp4`, M = 1 to 16: share of the bandwidth of copying",
        "0.58, better 0.75",
        "1.00",
        [(1, 2, 4, 5, 8, 16)],
        lambda found, counts: [
            row["fraction_of_copy"] for op in _FOUR_BITS for m in counts for row in found.large(op, m)
        ],
    ),
    Figure(
        "the same: time at M = 8 / 16 over M = 1",
        "at most 1.05 / 1.08",
        bounds.each(bounds.growth, 8, 16),
        [8, 16],
        Found.growth,
        max,
    ),
    Figure(
        "the same over cuBLAS in bf16, M = 1 / 16 / 64 / 128",
        "2.6 / 2.6 / 1.5 / 1.0",
        bounds.each(bounds.over_cublas, 1, 16, 64, 128),
        [1, 16, 64, 128],
        lambda found, m: [
            row["speedup_over"]["cublas_bf16"]
            for op in _FOUR_BITS
            for row in found.large(op, m)
            if "cublas_bf16" in row["speedup_over"]
        ],
    ),
    Figure(
        "`w4a16` over the better of tinygemm and gemlite, M = 1 / 16",
        "1.2 / 1.5",
        "copying's bandwidth over theirs",
        [1, 16],
        lambda found, m: found.over_best("linear_w4a16", m, ("tinygemm", "gemlite")),
    ),
    Figure(
        "`w4a8` over `w4a16`, M = 64 / 128",
        "1.4 / 1.7",
        bounds.each(bounds.integers, 64, 128),
        [64, 128],
        Found.integers,
    ),
    Figure(
        "prompts of 4096 tokens over cuBLAS in bf16, `w4a16` / `w4a8`",
        "0.85 / 1.3",
        bounds.prompts(),
        ["linear_w4a16_prefill", "linear_w4a8_prefill"],
        lambda found, op: found.over_peer(op, 4096, "cublas_bf16"),
    ),
    Figure(
        "`hadamard_quantize_act`, M = 4096, width up to 8192: time over that of a copy of its bytes",
        "at most 1.25",
        "1.00",
        [None],
        lambda found, _: found.rotations(),
        max,
    ),
    Figure(
        "attention, 4096 keys, batch 32: time of 4 queries over that of 1",
        "at most 1.10",
        bounds.queries(),
        [None],
        lambda found, _: found.queries(),
        max,
    ),
    Figure(
        "8b `w4a16`, batch 1, with graphs: a step over copying the bytes of its weights",
        "at most 2.2, better 1.6",
        "1.00",
        [1],
        lambda found, batch: [
            run["step_over_copy"] for run in found.runs("w4a16 alone", batch) if "step_over_copy" in run
        ],
        max,
    ),
    Figure(
        "8b plain `bf16`, batch 1, with graphs, over transformers, compiled",
        "1.0",
        "copying's bandwidth over theirs",
        [1],
        lambda found, batch: found.over_others("transformers", batch),
    ),
    Figure(
        "8b `bf16 <- mxfp4`, batch 1, over plain `bf16`",
        "1.9",
        bounds.from_bytes(),
        [1],
        lambda found, batch: found.faster("bf16 <- mxfp4", batch),
    ),
    Figure(
        "8b `w4a16 <- w4a8`, batch 64 / 128, over plain `w4a16`",
        "1.2 / 1.4",
        bounds.each(bounds.from_arithmetic, 64, 128),
        [64, 128],
        lambda found, batch: found.faster("w4a16 <- w4a8", batch),
    ),
)
