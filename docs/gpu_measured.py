"""What the page "Measured on GPUs" shows of what `qspec bench gpu` wrote to `results/gpu_bench_*.json`.

conf.py hands `substitutions` to MyST. Without a file every figure says that it is not measured.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_figures import NOT_MEASURED, Row, figures
from measured import Document, load, table

from qspec_decode.bench.drawing import write
from qspec_decode.bench.gpu.plots import decoded, decoding, kernels, linears


def substitutions(documents: Sequence[Document], trained: Sequence[Document] = ()) -> dict[str, str]:
    """Markdown by name, of one document for each device.

    Parameters
    ----------
    documents, trained
        Of `qspec bench gpu`, and of `qspec bench train`.
    """
    return {
        "gpu_figures": "\n\n".join((*map(failure_texts, documents), figures(documents))).strip(),
        "gpu_kernels": _each([one for one in documents if one["rows"]], kernel_texts),
        "gpu_decoding": _each([one for one in documents if one.get("decoding")], decoding_texts),
        "gpu_training": _each(trained, training_texts),
    }


def draw(results: Path, folder: Path) -> None:
    """Drawings of every device, as SVG, where the page looks for them."""
    for path in sorted(results.glob("gpu_bench_*.json")):
        document = load(path)
        for drawing, name in drawings(document).items():
            write(drawing, path, folder / name)


def drawings(document: Document) -> dict[Callable[[Document], Any], str]:
    """What can be drawn of a document, with names of the files."""
    of = re.sub(r"[^a-z0-9]+", "_", f"{document['gpu']['name']} {document['machine']['date']}".lower())
    found = {kernels: linears(document), decoding: decoded(document)}
    return {drawing: f"{of}_{drawing.__name__}.svg" for drawing, there in found.items() if there}


def _image(document: Document, drawing: Callable[[Document], Any], text: str) -> Iterator[str]:
    if name := drawings(document).get(drawing):
        yield f"![{text}](../_build/measured/{name})"


def failure_texts(document: Document) -> str:
    """What is wrong on a device, with the reasons; empty where nothing is."""
    checks, later = document.get("correctness", {}), document.get("decoding", {})
    wrong, left_out = checks.get("failures", ()), checks.get("unchecked", ())
    texts = [f"{len(wrong)} of {checks['checked']} checks failed and nothing was timed"] if wrong else []
    for part, what in (
        (document.get("failures"), "kernels that could not be timed"),
        (later.get("failures"), "failures in decoding"),
        (later.get("unequal"), "texts that are not what they have to be"),
        (left_out, "checks left out"),
    ):
        texts += [f"{what}: {len(part)}"] if part else []
    if not texts:
        return ""
    rows = ([_name(one), one["shape"], str(one["m"]), one["failed"]] for one in wrong)
    headings = ["", "shape", "M", "what is wrong"]
    return "\n\n".join(
        (f"**{caption(document)}: {'; '.join(texts)}.**", *([table(headings, rows)] if wrong else []))
    )


def _each(documents: Iterable[Document], show: Callable[[Document], Iterable[str]]) -> str:
    """What there is of every device, behind what it is."""
    parts = [part for one in documents for part in (f"**{caption(one)}**", *show(one))]
    return "\n\n".join(parts) or f"{NOT_MEASURED.capitalize()}."


def caption(document: Document) -> str:
    """What was measured, with what, and when."""
    gpu, machine = document["gpu"], document["machine"]
    when = machine["date"][:10] + (f", commit {machine['commit']}" if machine["commit"] else "")
    if document["command"] == "bench train":
        return f"{gpu or machine['cpu']}, torch {machine['torch']}, {when}"
    versions, cut = document["versions"], "" if document["finished"] else ", cut short"
    made = f"driver {gpu['driver']}, torch {versions['torch']}, triton {versions['triton']}"
    return f"{gpu['name']}, {made}, {when}{cut}"


def _pivot(rows: Iterable[tuple[str, int, str]], heading: Callable[[int], str]) -> str:
    """A table of (line, column, cell), lines as they come and columns in order."""
    cells: dict[str, dict[int, str]] = {}
    for line, column, text in rows:
        cells.setdefault(line, {})[column] = text
    columns = sorted({column for line in cells.values() for column in line})
    return table(
        ["", *map(heading, columns)],
        ([line, *(found.get(column, "") for column in columns)] for line, found in cells.items()),
    )


# -- kernels -----------------------------------------------------------------------------------------------


def kernel_texts(document: Document) -> Iterator[str]:
    """Linears over M, medians over the layers; the other ops one by one."""
    rows = linears(document)
    yield from _image(document, kernels, "Linears over the number of tokens")
    layers = list(dict.fromkeys(row["shape"] for row in rows))
    if rows:
        yield f"Linears, the median of {', '.join(layers)}: speed over cuBLAS in bf16."
        yield _over_m(rows, lambda row: row["speedup_over"].get("cublas_bf16"))
        yield "Bytes a second, as a share of what copying memory reaches in the same turns."
        yield _over_m(rows, lambda row: row["fraction_of_copy"])
    for peer in ("tinygemm", "gemlite"):
        beside = [row for row in rows if "_w4a16" in row["op"] and peer in row["speedup_over"]]
        if beside:
            yield f"Speed over {peer}, with the same codes."
            yield _over_m(beside, lambda row, peer=peer: row["speedup_over"][peer])
    others = [row for row in document["rows"] if row["op"] in ("hadamard_quantize_act", "attention")]
    if others:
        yield "Other ops; behind a rotation its time over that of a copy of its bytes."
        yield table(
            ["", "M", "µs", "quartiles", "of the bandwidth of copying", "over a copy"],
            (
                [_name(row) + f", {row['shape']}", str(row["m"]), *_us(row["us"]),
                 f"{row['fraction_of_copy']:.2f}", _over_copy(row)]
                for row in others
            ),
        )  # fmt: skip
    yield from _remarks(document)


def _over_m(rows: Sequence[Row], value: Callable[[Row], float | None]) -> str:
    """The median over the layers of something, op over M."""
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        one = value(row)
        if one is not None:
            found.setdefault((_name(row), row["m"]), []).append(one)
    cells = ((name, m, f"{statistics.median(values):.2f}") for (name, m), values in found.items())
    return _pivot(cells, "M = {}".format)


def _name(row: Row) -> str:
    return f"`{row['op']}` ({row['backend']})"


def _us(time: Row) -> list[str]:
    return [f"{time['median']:.1f}", f"{time['low']:.1f} to {time['high']:.1f}"]


def _over_copy(row: Row) -> str:
    speed = row["speedup_over"].get("copy_of_its_bytes")
    return f"{1 / speed:.2f}" if speed else ""


# -- decoding ----------------------------------------------------------------------------------------------


def decoding_texts(document: Document) -> Iterator[str]:
    """Tables of every scale: rates, speed-ups, what graphs bring, and what a speed-up is made of."""
    found = document["decoding"]
    yield from _image(document, decoding, "Tokens per second over the batch")
    for scale in dict.fromkeys(run["scale"] for run in found["runs"]):
        runs = [run for run in found["runs"] if run["scale"] == scale]
        ladders = [run for run in runs if _target(run)]
        yield f"At {scale}, {found['max_new_tokens']} tokens of each prompt: tokens a second."
        yield _over_batch(runs, lambda run: f"{run['tokens_per_second']['median']:.0f}")
        for what, rows, cell in (
            ("Speed over plain decoding of a ladder's own target.", ladders, _speedup),
            (
                "Speed over plain `bf16` / over plain `w4a16`.",
                [run for run in runs if run["speedup_over"] and (run["peer"] or run["graphs"])],
                _speedups,
            ),
            ("Rates with graphs over rates without.", list(_graphs(runs)), _ratio),
            (
                "Over a target's step a draft's (c) and a verification (v); the chance α that drafts stand.",
                [run for run in ladders if run["graphs"] and run.get("c")],
                _causes,
            ),
        ):
            if rows:
                yield what
                yield _over_batch(rows, cell)
    yield from _remarks(found)


def _over_batch(runs: Iterable[Row], cell: Callable[[Row], str]) -> str:
    return _pivot(((_title(run), run["batch"], cell(run)) for run in runs), "batch {}".format)


def _title(run: Row) -> str:
    if run["peer"]:
        return f"{run['name']}, compiled"
    return f"`{run['name']}`" + {True: "", False: ", without graphs"}.get(run["graphs"], "")


def _target(run: Row) -> str:
    """What a ladder verifies with; empty for plain decoding and for others."""
    return run["name"].split()[0] if "<-" in run["name"] else ""


def _speedup(run: Row) -> str:
    over = run["speedup_over"].get(_target(run))
    mark = "" if run["of_record"] else "\\*"
    return "" if over is None else f"{over['median']:.2f}{mark}"


def _speedups(run: Row) -> str:
    over = (run["speedup_over"].get(target) for target in ("bf16", "w4a16"))
    return " / ".join("?" if one is None else f"{one['median']:.2f}" for one in over)


def _graphs(runs: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Runs with graphs that there are without, too."""
    rates = {(run["name"], run["batch"], run["graphs"]): run["tokens_per_second"]["median"] for run in runs}
    for run in runs:
        without = rates.get((run["name"], run["batch"], False))
        if run["graphs"] and without:
            yield {**run, "ratio": run["tokens_per_second"]["median"] / without}


def _ratio(run: Row) -> str:
    return f"{run['ratio']:.2f}"


def _causes(run: Row) -> str:
    return "; ".join(", ".join(f"{one:.2f}" for one in run[name]) for name in ("c", "v", "alpha"))


# -- a larger model -----------------------------------------------------------------------------------------


def training_texts(document: Document) -> Iterator[str]:
    """The model, its bits per byte in every precision, and how often drafts stand."""
    card = document["card"]
    yield f"{document['parameters'] / 1e6:.1f} million parameters, trained for {card['steps']} steps."
    yield table(
        ["", "bits per byte"],
        ([f"`{one['precision']}`", f"{one['bits_per_byte']:.4f}"] for one in document["precisions"]),
    )
    accepted = {(one["target"], one["draft"]): one for one in document["acceptance"]}
    yield (
        "Drafts: where they say the same as their target over text that people wrote, greedily and sampled; "
        "the chance α that one stands in decoding, and what a row then commits in a round."
    )
    yield table(
        ["", "same token", "sampled stands", "α", "tokens of a round"],
        (
            [f"`{one['target']} <- {one['draft']}`", f"{one['top1']:.3f}", f"{one['sampled']:.3f}",
             *(f"{accepted[one['target'], one['draft']][name]:.3f}"
               for name in ("per_token_acceptance", "mean_acceptance_length"))]
            for one in document["agreement"]
        ),
    )  # fmt: skip


def _remarks(part: Document) -> Iterator[str]:
    """Why figures do not count, what differs, and what is missing."""
    reasons = dict.fromkeys(
        run["not_of_record_because"] for run in part.get("runs", ()) if not run.get("of_record", True)
    )
    texts = [f"\\* no figure of record: {'; or '.join(reasons)}."] if reasons else []
    texts += [f"Another text: {one['name']} in {one['what']}." for one in part.get("unequal", ())]
    texts += [f"Failed: {one['what']}. {one['error']}" for one in part.get("failures", ())]
    for reason in dict.fromkeys(one["reason"] for one in part["dropped"]):
        left_out = "; ".join(one["what"] for one in part["dropped"] if one["reason"] == reason)
        texts.append(f"Left out because {reason}: {left_out}.")
    texts += [f"Without {one['peer']}: {one['reason']}." for one in part["skipped_peers"]]
    if texts:
        yield " ".join(texts)
