"""`qspec bench`, and `qspec bench kernels`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qspec_decode.commands.outcome import note

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    name="bench",
    help="Measure this machine: kernels beside their bounds, decoding beside other programs.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


def kernels(
    ops: Annotated[
        str | None,
        typer.Option(help="Kernels, as in linear,attention; otherwise all. linear is every linear but fp32."),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            help="Models, linears of them such as llama-3-8b.down, or inputs x outputs such as 4096x14336; "
            "otherwise Llama-3.2-1B, Llama-3-8B and Qwen2.5-7B."
        ),
    ] = None,
    m: Annotated[str | None, typer.Option(help="Rows of the input; otherwise 1,4,5,8,16,64,512.")] = None,
    seconds: Annotated[
        float, typer.Option(help="That each contender gets on each shape and number of rows.")
    ] = 0.3,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything that was measured.")
    ] = None,
) -> None:
    """Time every kernel beside what bounds it and what people would use instead.

    Contenders on one shape take turns: the kernels, PyTorch's own bf16 and int4 linears, a plain loop
    that reads memory and one that computes in registers. So a fraction of the bound is one of the same
    moments. Weights are rotated through more memory than any cache holds, as a decode step reads them.
    Before anything is timed its result is checked.
    """
    from qspec_decode.bench import kernels as bench
    from qspec_kernels import UsageError

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UsageError(f"--json names {json_file}, whose directory does not exist", "Make it first.")
    request = bench.Request(
        bench.DEFAULT_OPS if ops is None else split_names(ops),
        bench.SHAPES if shapes is None else split_names(shapes),
        bench.ROWS if m is None else split_rows(m),
        seconds,
    )
    document = bench.run(request)
    if json_file is not None:
        json_file.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")
        note(f"written to {json_file}")
        return
    from rich.console import Console

    # a narrower terminal breaks lines where a narrower table would leave out figures
    console = Console(width=max(Console().width, 124), highlight=False)
    console.print(_head(document))
    console.print(_table(document["rows"]))


def split_names(text: str) -> list[str]:
    """The names of "a, b", each once."""
    return list(dict.fromkeys(name for name in map(str.strip, text.split(",")) if name))


def split_rows(text: str) -> list[int]:
    """The numbers of `--m`."""
    from qspec_kernels import UsageError

    parts = split_names(text)
    if not parts or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--m is {text!r}, expected numbers of at least 1", "For instance --m 1,8,64.")
    return list(map(int, parts))


def _head(document: dict[str, Any]) -> str:
    machine, bounds = document["machine"], document["bounds"]
    rates = ", ".join(
        f"{name} {rate['median']:.0f}{' GB/s' if name == 'memory' else ' GFLOPS'}"
        for name, rate in sorted(bounds.items(), key=lambda item: item[0] != "memory")
    )
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    overhead = document["overhead_us"]
    return (
        f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads, torch {machine['torch']},"
        f" {machine['date']}{commit}\nbounds: {rates}\nbesides its kernel a call costs"
        f" {overhead['op']['median']:.1f} us as an op, {overhead['call_in_a_program']['median']:.2f} us in a"
        " program, as which kernels are timed here"
    )


def _table(rows: list[dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("op", "shape"):
        table.add_column(column, no_wrap=True)
    for column in ("M", "us", "quartiles", "GB/s", "GFLOPS", "of the bound"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        us, fraction = row["us"], row["fraction_of_bound"]
        table.add_row(
            row["op"],
            row["shape"],
            str(row["m"]),
            number(us["median"]),
            f"{number(us['low'])} to {number(us['high'])}",
            f"{row['gb_per_second']:.1f}",
            f"{row['gflops']:.1f}",
            "" if fraction is None else f"{fraction:.2f} of {row['bound']}",
            style="dim" if row["peer"] else None,
        )
    return table


def number(value: float) -> str:
    """Three digits, as far as they say something."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
