"""`qspec bench gpu`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qspec_decode.commands.bench import new_table, split_names, split_rows, times, wide_console
from qspec_decode.commands.json_file import check_file, is_ordinary, replace_file
from qspec_decode.commands.outcome import BUG_STATUS, note

if TYPE_CHECKING:
    from rich.table import Table


def gpu(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what is found, as it is found.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds for everything, 420 unless told; what has begun is finished."),
    ] = None,
    ops: Annotated[
        str | None,
        typer.Option(
            help="Kernels, as in linear,attention; otherwise all. linear is every linear. All are checked; "
            "linears, hadamard_quantize_act and attention are timed."
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            help="Models, linears of them such as llama-3-8b.down, or inputs x outputs such as 4096x14336; "
            "otherwise Llama-3-8B and Llama-3-70B. For timing."
        ),
    ] = None,
    m: Annotated[
        str | None,
        typer.Option(help="Rows of the input; otherwise 1,2,4,5,8,16,32,64,128,512,4096. For timing."),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            help="Sizes to which the demo model is widened and then decodes; otherwise 8b,1b, and none at "
            "all where --ops, --shapes or --m choose kernels."
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Sequences decoded at once; otherwise 1,4,16,32,64,128.")
    ] = None,
    decoding: Annotated[bool, typer.Option(help="Whether anything decodes.")] = True,
) -> None:
    """Check every GPU kernel of this machine, then time it, then decode: what to run first on a new GPU.

    Checked first is whether matrix instructions lay out their operands as the CUDA kernels take for granted.
    Then the kernels of each backend (CUDA, Triton) for itself, on small shapes and on ones with tails:
    against float64 on the CPU, integer results bit for bit; that a row is the same, bit for bit, whatever
    rows share its call; that a replay of a CUDA graph gives what the call gave; and the ops, on each backend,
    by PyTorch's opcheck and under torch.compile. One failure and nothing is timed: a table says what is
    wrong, and the exit status is 1.

    Timed are replays of CUDA graphs, over weights that no cache holds, as a decode step reads them.
    Contenders on one shape take turns: the kernels, cuBLAS in bf16, PyTorch's int4 linear (tinygemm), gemlite
    where it is installed, and plain copying and reading of memory. Linears have kernels of their own for
    prompts (linear_w4a16_prefill): those are timed from 128 rows on, the others up to 512.

    Then the demo model, widened to a real model's shape, decodes held-out prompts greedily. Every ladder
    takes turns with plain decoding of its target, with CUDA graphs and without; transformers' compiled
    generate does where it is installed. Texts that have to be equal are compared, and the exit status is 1 if
    they differ. Passes alone say what a ladder's speed is made of. What matters least comes last and is
    dropped when the budget is spent; the document says what.
    """
    from qspec_decode.bench.gpu import run as bench
    from qspec_decode.bench.gpu.device import Gpu
    from qspec_decode.bench.gpu.prepared import prepare
    from qspec_decode.bench.gpu.request import DECODED, Request

    check_file(json_file)
    chosen: dict[str, Any] = {
        "ops": ops and split_names(ops),
        "shapes": shapes and split_names(shapes),
        "rows": m and split_rows(m),
        "budget": budget,
        "batches": batch and _split_batches(batch),
    }
    if not decoding:
        chosen["scales"] = ()
    elif scales is not None:
        chosen["scales"] = split_names(scales)
    elif ops is None and shapes is None and m is None:
        chosen["scales"] = DECODED
    request = Request(**{name: value for name, value in chosen.items() if value is not None})
    document = bench.run(request, Gpu(), _say(), keep=_keeper(json_file), prepare=prepare)
    if json_file is not None:
        note(f"written to {json_file}")
    print_report(document)
    decoded = document.get("decoding", {})
    failed = document["correctness"]["failures"] or document["failures"]
    if failed or decoded.get("failures") or decoded.get("unequal"):
        raise typer.Exit(BUG_STATUS)


def _split_batches(text: str) -> list[int]:
    from qspec_kernels import UsageError

    parts = split_names(text)
    if not parts or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--batch is {text!r}, expected numbers of at least 1", "For instance --batch 1,64.")
    return list(map(int, parts))


def _keeper(path: Path | None) -> Callable[[dict[str, Any]], None]:
    """Writes the document whenever there is more of it, so that a run that is cut short keeps what it found.

    What is no ordinary file, such as a pipe, gets the finished one alone.
    """

    def keep(document: dict[str, Any]) -> None:
        if path is not None and (document["finished"] or is_ordinary(path)):
            replace_file(path, document)

    return keep


def _say() -> Callable[[str], None]:
    """Lines of progress on stderr, each once."""
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            note(text)

    return say


def print_report(document: dict[str, Any]) -> None:
    """What was found, as tables on stderr."""
    console = wide_console(132, stderr=True)
    device, found = document["gpu"], document["correctness"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    console.print(
        f"{device['name']}, driver {device.get('driver')}, {versions}, {document['machine']['date']}, "
        f"commit {document['machine']['commit']}, {document['seconds']:.0f} s"
    )
    if found["failures"]:
        console.print(f"{len(found['failures'])} of {found['checked']} checks failed; nothing was timed:")
        console.print(_failures(found["failures"]))
        return
    console.print(f"{found['checked']} checks, none failed, in {found['seconds']:.0f} s")
    console.print(_rows(document["rows"]))
    parts = [document]
    if "decoding" in document:
        decoded = document["decoding"]
        parts.append(decoded)
        console.print(_passes(decoded["passes"]))
        console.print(_runs(decoded["runs"]))
        for one in decoded["unequal"]:
            console.print(
                f"[bold red]another text:[/bold red] {one['name']} in {one['what']}: prompt {one['prompt']}, "
                f"from token {one['position']} on"
            )
    for part in parts:
        for one in part["failures"]:
            console.print(f"[bold red]failed:[/bold red] {one['what']}: {one['error']}")
        for one in part["dropped"]:
            console.print(f"not timed: {one['what']}: {one['reason']}")
        for one in part["skipped_peers"]:
            console.print(f"without {one['peer']}: {one['reason']}")


def _failures(failures: Sequence[dict[str, Any]]) -> "Table":
    table = new_table(("op", "backend", "shape"), ("M", "worst error", "bound"), ("what is wrong",))
    for one in failures:
        numbers = ("" if one[name] is None else f"{one[name]:.3e}" for name in ("error", "bound"))
        table.add_row(one["op"], one["backend"], one["shape"], str(one["m"]), *numbers, one["failed"])
    return table


def _rows(rows: Sequence[dict[str, Any]]) -> "Table":
    columns = ("M", "us", "quartiles", "GB/s", "of copy", "of read", "TFLOPS", "over cublas")
    table = new_table(("op", "backend", "shape"), columns)
    for row in rows:
        over = row["speedup_over"].get("cublas_bf16")
        table.add_row(
            row["op"],
            row["backend"],
            row["shape"],
            str(row["m"]),
            *times(row["us"]),
            f"{row['gb_per_second']:.0f}",
            f"{row['fraction_of_copy']:.2f}",
            f"{row['fraction_of_read']:.2f}",
            f"{row['tflops']:.1f}",
            "" if over is None else f"{over:.2f}x",
            style="dim" if row["peer"] else None,
        )
    return table


def _passes(rows: Sequence[dict[str, Any]]) -> "Table":
    table = new_table(("scale", "passes alone"), ("batch", "tokens", "us", "quartiles", "GB/s", "of copy"))
    for row in rows:
        table.add_row(
            row["scale"],
            f"{row['model']} {row['precision']}{', as a draft' if row['draft'] else ''}",
            str(row["batch"]),
            str(row["tokens_per_row"]),
            *times(row["us"]),
            f"{row['gb_per_second']:.0f}",
            f"{row['fraction_of_copy']:.2f}",
        )
    return table


def _runs(rows: Sequence[dict[str, Any]]) -> "Table":
    columns = (
        "batch",
        "tokens/s",
        "stand",
        "c",
        "v",
        "formula",
        "over bf16",
        "over w4a16",
        "step/copy",
        "graph MB",
    )
    table = new_table(("scale", "decoding", "graphs"), columns)
    for row in rows:
        over = [row["speedup_over"].get(name) for name in ("bf16", "w4a16")]
        held = row["graph_bytes"]
        table.add_row(
            row["scale"],
            ("" if row.get("of_record") or row["peer"] else "* ") + row["name"],
            {True: "yes", False: "no", None: ""}[row["graphs"]],
            str(row["batch"]),
            f"{row['tokens_per_second']['median']:.0f}",
            _numbers(row.get("alpha")),
            _numbers(row.get("c")),
            _numbers(row.get("v")),
            _numbers([row.get("formula_speedup")]),
            *("" if one is None else f"{one['median']:.2f}x" for one in over),
            _numbers([row.get("step_over_copy")]),
            "" if held is None else f"{held / 1e6:.0f}",
            style="dim" if row["peer"] else None,
        )
    return table


def _numbers(values: Sequence[float | None] | None) -> str:
    return ", ".join(f"{value:.2f}" for value in values or () if value is not None)
