"""`qspec bench gpu`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qspec_decode.commands.bench import number, split_names, split_rows
from qspec_decode.commands.outcome import BUG_STATUS, note

if TYPE_CHECKING:
    from rich.table import Table


def gpu(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything that was found.")
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
) -> None:
    """Check every GPU kernel of this machine, then time it: what to run first on a new GPU.

    Checked are the kernels of each backend (CUDA, Triton) for itself, on small shapes and on ones with tails:
    against float64 on the CPU, integer results bit for bit; that a row is the same, bit for bit, whatever
    rows share its call; that a replay of a CUDA graph gives what the call gave. One failure and nothing is
    timed: a table says what is wrong, and the exit status is 1.

    Timed are replays of CUDA graphs, over weights that no cache holds, as a decode step reads them.
    Contenders on one shape take turns: the kernels, cuBLAS in bf16, PyTorch's int4 linear (tinygemm), gemlite
    where it is installed, and plain copying and reading of memory. The largest come last and are dropped
    when the budget is spent; the document says which.
    """
    from qspec_decode.bench.gpu import run as bench
    from qspec_decode.bench.gpu.device import Gpu
    from qspec_kernels import UsageError

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UsageError(f"--json names {json_file}, whose directory does not exist", "Make it first.")
    default = bench.Request()
    request = bench.Request(
        default.ops if ops is None else split_names(ops),
        default.shapes if shapes is None else split_names(shapes),
        default.rows if m is None else split_rows(m),
        default.budget if budget is None else budget,
    )
    document = bench.run(request, Gpu(), _say())
    if json_file is not None:
        json_file.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")
        note(f"written to {json_file}")
    print_report(document)
    if document["correctness"]["failures"]:
        raise typer.Exit(BUG_STATUS)


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
    from rich.console import Console

    # a narrower terminal breaks lines where a narrower table would leave out figures
    console = Console(stderr=True, width=max(Console(stderr=True).width, 132), highlight=False)
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
    for one in document["dropped"]:
        console.print(f"not timed: {one['what']}: {one['reason']}")
    for one in document["skipped_peers"]:
        console.print(f"without {one['peer']}: {one['reason']}")


def _failures(failures: Sequence[dict[str, Any]]) -> "Table":
    table = _new_table(("op", "backend", "shape"), ("M", "worst error", "bound"), ("what is wrong",))
    for one in failures:
        numbers = ("" if one[name] is None else f"{one[name]:.3e}" for name in ("error", "bound"))
        table.add_row(one["op"], one["backend"], one["shape"], str(one["m"]), *numbers, one["failed"])
    return table


def _rows(rows: Sequence[dict[str, Any]]) -> "Table":
    columns = ("M", "us", "quartiles", "GB/s", "of copy", "of read", "TFLOPS", "over cublas")
    table = _new_table(("op", "backend", "shape"), columns, ())
    for row in rows:
        us, over = row["us"], row["speedup_over"].get("cublas_bf16")
        table.add_row(
            row["op"],
            row["backend"],
            row["shape"],
            str(row["m"]),
            number(us["median"]),
            f"{number(us['low'])} to {number(us['high'])}",
            f"{row['gb_per_second']:.0f}",
            f"{row['fraction_of_copy']:.2f}",
            f"{row['fraction_of_read']:.2f}",
            f"{row['tflops']:.1f}",
            "" if over is None else f"{over:.2f}x",
            style="dim" if row["peer"] else None,
        )
    return table


def _new_table(left: Sequence[str], right: Sequence[str], last: Sequence[str]) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    for column in last:
        table.add_column(column)
    return table
