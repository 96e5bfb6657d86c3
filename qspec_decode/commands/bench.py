"""`qspec bench`, and `qspec bench kernels`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qspec_decode.commands.json_file import check_file, write_file

if TYPE_CHECKING:
    from rich.console import Console
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

    check_file(json_file)
    request = bench.Request(
        bench.DEFAULT_OPS if ops is None else split_names(ops),
        bench.SHAPES if shapes is None else split_names(shapes),
        bench.ROWS if m is None else split_rows(m),
        seconds,
    )
    document = bench.run(request)
    if json_file is not None:
        write_file(json_file, document)
        return
    console = wide_console(124)
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
    table = new_table(("op", "shape"), ("M", "us", "quartiles", "GB/s", "GFLOPS", "of the bound"))
    for row in rows:
        fraction = row["fraction_of_bound"]
        table.add_row(
            row["op"],
            row["shape"],
            str(row["m"]),
            *times(row["us"]),
            f"{row['gb_per_second']:.1f}",
            f"{row['gflops']:.1f}",
            "" if fraction is None else f"{fraction:.2f} of {row['bound']}",
            style="dim" if row["peer"] else None,
        )
    return table


def wide_console(least: int, *, stderr: bool = False) -> "Console":
    """A terminal; a narrower one breaks lines where a narrower table would leave out figures."""
    from rich.console import Console

    return Console(stderr=stderr, width=max(Console(stderr=stderr).width, least), highlight=False)


def new_table(left: Sequence[str], right: Sequence[str], last: Sequence[str] = ()) -> "Table":
    """A table with columns of words, of figures, and of words that may take several lines."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    for column in last:
        table.add_column(column)
    return table


def times(us: dict[str, float]) -> tuple[str, str]:
    """Median and quartiles, as two cells."""
    return number(us["median"]), f"{number(us['low'])} to {number(us['high'])}"


def number(value: float) -> str:
    """Three digits, as far as they say something."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
