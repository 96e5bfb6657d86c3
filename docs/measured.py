"""What the page "how fast, and why" shows of the committed measurements: tables, numbers and drawings.

conf.py hands `substitutions` to MyST, so that no figure on the page is typed by hand.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qspec_decode.bench.drawing import caption, write
from qspec_decode.bench.rates import rates
from qspec_decode.bench.roofline import roofline

Document = Mapping[str, Any]

# whom a kernel is compared with: what does the same work in PyTorch
PEERS = {
    "linear_bf16": "torch_linear_bf16",
    "linear_w4a16": "torch_int4pack",
    "linear_w4a8": "torch_int4pack",
}

# the machines of `cpu_kernels_*.json` and of `cpu_decode_*.json`; the numbers of the worked example are the
# first one's
KERNELS = ("avx512", "amx")
DECODING = ("avx512", "amx")


def substitutions(results: Path) -> dict[str, str]:
    """Markdown by name.

    The files are what `qspec bench kernels --json`, linears of every precision on one shape, and `qspec bench
    decode --json` wrote on each machine, on the same shape and with the same prompts.
    """
    kernels = {machine: load(results / f"cpu_kernels_{machine}.json") for machine in KERNELS}
    decoding = {machine: load(results / f"cpu_decode_{machine}.json") for machine in DECODING}
    texts = shared_texts(kernels[KERNELS[0]], decoding[DECODING[0]])
    for machine, document in kernels.items():
        texts |= {f"{name}_{machine}": text for name, text in kernel_texts(document).items()}
    for machine, document in decoding.items():
        texts |= {f"{name}_{machine}": text for name, text in decoding_texts(document).items()}
    return texts


def draw(results: Path, folder: Path) -> None:
    """The drawings of all documents, as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for machine in KERNELS:
        write(roofline, results / f"cpu_kernels_{machine}.json", folder / f"roofline_{machine}.svg")
    for machine in DECODING:
        write(rates, results / f"cpu_decode_{machine}.json", folder / f"rates_{machine}.svg")


def load(path: Path) -> Document:
    """A document."""
    return json.loads(path.read_text(encoding="utf-8"))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; the first column is text, the others are numbers."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shared_texts(kernels: Document, decoding: Document) -> dict[str, str]:
    """What was measured, which holds for every machine, and the numbers of the worked example."""
    found = {(row["op"], row["m"]): row for row in kernels["rows"]}
    most = max(m for _, m in found)
    texts = {
        "kernels_shape": kernels["rows"][0]["shape"],
        "kernels_seconds": f"{kernels['seconds']:g}",
        "most_rows": str(most),
        "decode_note": decoding["note"],
        "decode_scale": decoding["scale"],
        "decode_prompts": str(decoding["num_prompts"]),
        "decode_tokens": str(decoding["max_new_tokens"]),
    }
    return texts | example("one", found["linear_mxfp4a8", 1]) | example("many", found["linear_mxfp4a8", most])


def kernel_texts(document: Document) -> dict[str, str]:
    """Tables of op over M."""
    found = {(row["op"], row["m"]): row for row in document["rows"]}
    counts = list(dict.fromkeys(row["m"] for row in document["rows"]))
    own = list(dict.fromkeys(row["op"] for row in document["rows"] if not row["peer"]))
    everyone = list(dict.fromkeys(row["op"] for row in document["rows"]))
    headings = ["", *(f"M = {m}" for m in counts)]

    def over_m(ops: Iterable[str], cell: Callable[[str, int], str]) -> str:
        return table(headings, ([f"`{op}`", *(cell(op, m) for m in counts)] for op in ops))

    def bound(op: str, m: int) -> str:
        fraction, name = found[op, m]["fraction_of_bound"], found[op, m]["bound"]
        return "" if fraction is None else f"{fraction:.2f}" + ("" if name == "memory" else f" of {name}")

    def faster(op: str, m: int) -> str:
        return f"{found[PEERS[op], m]['us']['median'] / found[op, m]['us']['median']:.2f}"

    return {
        "kernels_machine": f"{caption(document['machine'])}; torch {document['machine']['torch']}",
        "kernels_us": over_m(everyone, lambda op, m: f"{found[op, m]['us']['median']:.0f}"),
        "kernels_bound": over_m(own, bound),
        "kernels_peers": over_m([op for op in own if PEERS.get(op) in everyone], faster),
    }


def example(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    """The bounds of one kernel worked out, number by number."""
    memory = row["bytes"] / row["bandwidth_gb_per_second"] / 1e3
    compute = row["operations"] / row["peak_gflops"] / 1e3
    values = {
        "mb": f"{row['bytes'] / 1e6:.1f}",
        "bandwidth": f"{row['bandwidth_gb_per_second']:.1f}",
        "memory_us": f"{memory:.0f}",
        "gop": f"{row['operations'] / 1e9:.3g}",
        "peak": f"{row['peak_gflops']:.0f}",
        "compute_us": f"{compute:.0f}",
        "us": f"{row['us']['median']:.0f}",
        "fraction": f"{max(memory, compute) / row['us']['median']:.2f}",
    }
    return {f"{name}_{key}": value for key, value in values.items()}


def decoding_texts(document: Document) -> dict[str, str]:
    """Tables of plain decoding, of ladders and of what they are made of."""
    return {
        "decode_machine": caption(document["machine"]),
        "decode_plain": table(
            [
                "",
                "batch",
                "tokens/s",
                "step, ms",
                "GB/s of weights",
                "of the read loop",
                "outside kernels, ms",
            ],
            (row for batch in document["batches"] for row in _plain(batch)),
        ),
        "decode_ladders": table(
            ["", "batch", "tokens/s", "speed-up", "quartiles", "model", "of it", "formula", "c", "v", "α"],
            (row for batch in document["batches"] for row in _ladders(batch)),
        ),
        "decode_remarks": _remarks(document),
    }


def _plain(batch: Document) -> Iterable[list[str]]:
    steps = {
        one["precision"]: one
        for one in batch["passes"]
        if one["model"] == "target" and one["tokens_per_row"] == 1 and not one["draft"]
    }
    outside = {one["precision"]: f"{one['outside_seconds'] * 1e3:.2f}" for one in batch["outside_kernels"]}
    for run in batch["runs"]:
        if run["draft"]:
            continue
        name = f"{run['name']}, {run['weights']}" if run["peer"] else f"`{run['weights']}`"
        row = [name, str(batch["batch"]), f"{run['tokens_per_second']:.1f}"]
        if run["peer"]:
            yield [*row, "", "", "", ""]
            continue
        step = steps[run["weights"]]
        share = step["fraction_of_read_bandwidth"]
        yield [
            *row,
            f"{step['seconds'] * 1e3:.1f}",
            f"{step['bytes_per_second'] / 1e9:.1f}",
            "" if share is None else f"{share:.2f}",
            outside.get(run["weights"], ""),
        ]


def _ladders(batch: Document) -> Iterable[list[str]]:
    for run in batch["runs"]:
        if not run["draft"]:
            continue
        low, high = run["speedup_quartiles"]
        formula, share = run["formula_speedup"], run["measured_over_predicted"]
        yield [
            f"`{run['name']}`",
            str(batch["batch"]),
            f"{run['tokens_per_second']:.1f}",
            f"{run['speedup']:.2f}" + ("" if run["of_record"] else "\\*"),
            f"{low:.2f} to {high:.2f}",
            f"{run['predicted_speedup']:.2f}",
            "" if share is None else f"{share:.2f}",
            "" if formula is None else f"{formula:.2f}",
            *("; ".join(f"{value:.2f}" for value in run[name]) for name in ("c", "v", "alpha")),
        ]


def _remarks(document: Document) -> str:
    """Why figures do not count, each reason once, and who was left out."""
    runs = [run for batch in document["batches"] for run in batch["runs"]]
    reasons = dict.fromkeys(run["not_of_record_because"] for run in runs if not run["of_record"])
    texts = ["All figures are figures of record."]
    if reasons:
        texts = ["\\* no figure of record: " + "; or ".join(reasons) + "."]
    texts += [f"Left out: {one['peer']}. {one['reason']}" for one in document["skipped_peers"]]
    return " ".join(texts)
