"""`qspec demo`."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qspec_decode.commands.outcome import note, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from qspec_decode.demo.run import Demo

Scale = Literal["none", "0.5b", "1b", "2b"]
BUDGET_SECONDS = 90.0


def demo(
    scale: Annotated[
        Scale,
        typer.Option(
            help="Shape the bundled model is widened to; 1b is Llama-3.2-1B's, none leaves it small."
        ),
    ] = "0.5b",
    prompts: Annotated[
        int | None,
        typer.Option(help="Held-out prompts; 16 give figures of record. Otherwise as many as fit in 90 s."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens per prompt and run; greedy figures count up to 48.")
    ] = 48,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write a text speculatively, then measure every ladder against plain decoding of its target.

    The model is the bundled 6.75M-parameter one, trained on Python source and widened to a real model's
    shape without changing what it says: real memory traffic and arithmetic, a small model's text.

    All runs are on one prompt at a time, take turns, and are followed by the speed-up over plain decoding in
    the same run (median over the prompts, quartiles), the share of drafts accepted, the tokens a
    round commits, and the bound: what that acceptance allows where time is bytes. Greedy text is compared
    with plain decoding token for token.
    """
    # all that follows counts against the 90 seconds, imports and widening included
    began = time.perf_counter()
    _say("loading the demo model ...")
    from qspec_decode.demo import run

    prepared = run.prepare(scale, prompts, max_new_tokens, _say)
    if not as_json:
        _stream(prepared)
    deadline = began + BUDGET_SECONDS if prompts is None else None
    with status(began, deadline) as say:
        document = run.measure(prepared, deadline, say)
    if as_json:
        print_json(document)
    else:
        _print_report(document)


def _stream(prepared: "Demo") -> None:
    from qspec_decode.demo import run
    from qspec_decode.streaming import DIM, LEGEND, RESET, TextStreamer

    colour = sys.stdout.isatty()
    text = prepared.tokenizer.decode(prepared.prompts[0])
    title = f"{run.SHOWN.title}, greedy"
    print(f"{title}: {LEGEND}\n\n{DIM}{text}{RESET}" if colour else f"{title}:\n\n{text}", end="", flush=True)
    run.stream(prepared, TextStreamer(prepared.tokenizer, sys.stdout, colour=colour))
    print()


def _say(text: str) -> None:
    """What is being done now: a line on a terminal's standard error, nothing anywhere else."""
    if sys.stderr.isatty():
        note(text)


@contextmanager
def status(began: float, deadline: float | None) -> Iterator[Callable[[str], None]]:
    """As `_say`, but one line that changes, with the time."""
    if not sys.stderr.isatty():
        yield _say
        return
    from rich.console import Console

    budget = "" if deadline is None else f" of {deadline - began:.0f}"
    # drawn seldom: it takes time from what is being measured
    with Console(stderr=True).status("measuring ...", refresh_per_second=2) as line:
        yield lambda text: line.update(f"{text}; {time.perf_counter() - began:.0f}{budget} s")


def _print_report(document: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(document["note"])
    console.print(
        f"Held-out prompts of Python source: {document['num_prompts']}, one at a time, "
        f"{document['max_new_tokens']} new tokens each.\n"
    )
    for temperature in sorted({run["temperature"] for run in document["runs"]}):
        runs = [run for run in document["runs"] if run["temperature"] == temperature]
        console.print(_table(runs, temperature))
        for reason, titles in _reasons(runs).items():
            who = "" if len(titles) == len(runs) else f" ({', '.join(titles)})"
            console.print(f"* no figure of record{who}: {reason}")
        console.print()
    console.print(_EXPLANATION + "\n")
    console.print(_agreement(document["agreement"]))


_EXPLANATION = (
    "speed-up: over plain decoding of the same target in this run, median over prompts, and half the "
    "distance of the quartiles. accepted: share of drafts that stood. length: tokens a round commits. bound: "
    "the speed-up if time were bytes of weights; plain decoding reads the target's once a token, how often a "
    "ladder reads those of its levels follows from the measured acceptance. 8-grams: repeated ones in the "
    "text; loops flatter every drafter."
)


def _reasons(runs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Why figures do not count, each with the ladders that it concerns."""
    reasons: dict[str, list[str]] = {}
    for run in runs:
        if not run["of_record"]:
            reasons.setdefault(run["not_of_record_because"], []).append(run["title"])
    return reasons


def new_table(title: str, headings: list[str], first: str = "") -> "Table":
    """A table of figures, whose first column, `first`, names what they are of."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column(first, no_wrap=True, min_width=22)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _table(runs: list[dict[str, Any]], temperature: float) -> "Table":
    greedy = temperature == 0
    headings = ["tok/s", "speed\nup", "\n\u00b1", "accep-\nted", "length", "bound", "8-\ngrams"]
    if greedy:
        headings.append("same\ntext")
    table = new_table("Greedy" if greedy else f"Sampled at {temperature}", headings, first="ladder")
    seen = set()
    for run in runs:
        if run["target"] not in seen:
            seen.add(run["target"])
            plain = f"{run['baseline_tokens_per_second']:.1f}"
            table.add_row(f"{run['target']} alone", plain, "1.00 ", style="dim")
        low, high = run["speedup_quartiles"] or (0.0, 0.0)
        cells = [
            run["title"],
            f"{run['tokens_per_second']:.1f}",
            f"{run['speedup'] or 0.0:.2f}" + (" " if run["of_record"] else "*"),
            f"{(high - low) / 2:.2f}",
            f"{run['acceptance_rate']:.0%}",
            f"{run['tokens_per_round']:.2f}",
            f"{run['bound']:.2f}",
            f"{run['repeated_8gram_share']:.0%}",
        ]
        if greedy:
            cells.append("yes" if run["lossless_equal"] else "[bold red]NO[/bold red]")
        table.add_row(*cells)
    return table


def _agreement(rows: list[dict[str, Any]]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"Teacher-forced on the prompts' own text, {rows[0]['num_positions']} positions",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("draft", no_wrap=True, min_width=22)
    table.add_column("same top token", justify="right")
    table.add_column(f"accepted when sampled at {rows[0]['temperature']}", justify="right")
    for row in rows:
        table.add_row(f"{row['target']} <- {row['draft']}", f"{row['top1']:.3f}", f"{row['sampled']:.3f}")
    return table
