"""`qspec bench decode`."""

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qspec_decode.commands.demo import Scale, new_table, status
from qspec_decode.commands.json_file import check_file, write_file

if TYPE_CHECKING:
    from rich.table import Table


def decode(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A checkpoint directory; otherwise the bundled demo model."),
    ] = "demo",
    scale: Annotated[
        Scale | None,
        typer.Option(help="Shape the demo model is widened to, 0.5b unless told; none leaves it small."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Sequences decoded at once, for instance 1,4,8,16.")] = "1",
    ladders: Annotated[
        str | None,
        typer.Option(
            help="Ladders as in 'bf16<-mxfp4;bf16<-mxfp4<-small:mxfp4', where small is the demo's sibling in "
            "bf16 and small:mxfp4 the same in MXFP4; otherwise all that the demo has."
        ),
    ] = None,
    num_speculative_tokens: Annotated[
        str | None,
        typer.Option(
            "--num-speculative-tokens",
            "-K",
            help="K of the first draft, one run each: 1,2,4,8. At most 8; auto, as otherwise, drafts as "
            "many as are likely to stand.",
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Other programs: transformers, llama.cpp, llama-server, or none; otherwise those installed."
        ),
    ] = None,
    llama_server: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="llama.cpp's server; otherwise the one that QSPEC_LLAMA_SERVER names, or that is on PATH.",
        ),
    ] = None,
    quant_lm_head: Annotated[
        bool,
        typer.Option(help="Whether int4 weights have the output matrix in int4, as the Q4_0 file does."),
    ] = True,
    prompts: Annotated[int, typer.Option(help="Held-out prompts; 16 give figures of record.")] = 16,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens per prompt and run; figures of record have 16 to 48.")
    ] = 48,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything that was measured.")
    ] = None,
) -> None:
    """Measure decoding: plain in every precision, every ladder, and other programs on the same weights.

    All decode the same prompts greedily and take turns. Their texts are compared, token by token. The passes
    that ladders are made of are timed alone, so that the speed-up that follows from them stands beside
    the one that was measured.
    """
    from qspec_decode.bench import decode as bench
    from qspec_decode.bench import peers as others
    from qspec_kernels import UsageError

    check_file(json_file)
    if model != "demo" and scale is not None:
        raise UsageError(f"--scale {scale} is about the demo model, and {model} was named", "Leave one out.")
    names = _names(peers)
    others.check_names(names, llama_server)
    batches = _integers("--batch", batch, 64)
    counts = _counts(num_speculative_tokens)
    began = time.perf_counter()
    with status(began, None) as say, tempfile.TemporaryDirectory() as scratch, ExitStack() as closing:
        say("loading ...")
        subject = bench.prepare(
            model, scale or "0.5b", prompts, max_new_tokens, say, quant_lm_head=quant_lm_head
        )
        chosen = bench.choose_ladders(subject, ladders)
        settings = bench.Settings(batches, chosen, counts, max_new_tokens)
        here = Path(scratch)
        weights = others.Weights(
            lambda: subject.checkpoint(here), lambda: subject.small_checkpoint(here), here
        )
        ready, skipped = others.open_peers(names, weights, llama_server, closing, say)
        document = bench.measure(subject, settings, ready, say) | {"skipped_peers": skipped}
    if json_file is not None:
        write_file(json_file, document)
    print_report(document)


def _names(peers: str | None) -> list[str] | None:
    if peers is None:
        return None
    return [name for name in map(str.strip, peers.split(",")) if name and name != "none"]


def _counts(text: str | None) -> tuple[int | None, ...]:
    """The K of "1,4,auto", each once; None for auto."""
    parts = ["auto"] if text is None else [part.strip() for part in text.split(",")]
    numbers = [part for part in parts if part != "auto"]
    known = _integers("-K", ",".join(numbers), 8) if numbers else ()
    return (*((None,) if "auto" in parts else ()), *known)


def _integers(option: str, text: str, most: int) -> tuple[int, ...]:
    """The numbers of "1,4,8", each once."""
    from qspec_kernels import UsageError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= most for part in parts):
        raise UsageError(
            f"{option} is {text!r}, expected numbers from 1 to {most}", f"For instance {option} 1,4,8."
        )
    return tuple(dict.fromkeys(map(int, parts)))


def print_report(document: dict[str, Any]) -> None:
    """What was measured, as tables."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 116)
    console.print(document["note"])
    machine = document["machine"]
    console.print(
        f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads, {machine['date']}. Held-out "
        f"prompts: {document['num_prompts']}, {document['max_new_tokens']} new tokens each, greedy. "
        f"Output matrix of int4 weights: {'int4' if document['quant_lm_head'] else 'bf16'}.\n"
    )
    for batch in document["batches"]:
        console.print(_plain_table(batch))
        for table in (_ladder_table(batch), _formula_table(batch)):
            if table.row_count:
                console.print(table)
        for line in _remarks(batch):
            console.print(line)
        console.print()
    for skipped in document["skipped_peers"]:
        console.print(f"{skipped['peer']} was left out: {skipped['reason']}")
    console.print(_EXPLANATION)


_EXPLANATION = (
    "tok/s: median over calls. step: a forward pass over a warm cache, with the "
    "bytes of weights it reads in a second, and their share of what a plain loop reads. outside: what a step "
    "takes beside kernels. speed-up: over plain decoding of the same target in this run, median over calls "
    "and quartiles. model: the speed-up if the passes that were made had cost what they cost alone, and the "
    "time beside them what it did. formula: E(alpha, K) / (K c + v). c: a step of a draft over a step of the "
    "target. v: verifying K drafts over a step. alpha: the chance that a draft stands. in loop: what passes "
    "took in decoding over what they take alone. same text: as plain decoding's, token for token; otherwise "
    "how many texts fork, and where the first one does."
)


def _plain_table(batch: dict[str, Any]) -> "Table":
    headings = ["weights", "tok/s", "quartiles", "step\nms", "GB/s", "of\nread", "outside\nms"]
    table = new_table(f"Batch {batch['batch']}: plain decoding", [*headings, "over\nours", "same text"])
    steps = {
        one["precision"]: one
        for one in batch["passes"]
        if one["model"] == "target" and one["tokens_per_row"] == 1 and not one["draft"]
    }
    outside = {one["precision"]: one for one in batch["outside_kernels"]}
    for run in batch["runs"]:
        if run["draft"]:
            continue
        low, high = run["tokens_per_second_quartiles"]
        rates = [run["weights"], f"{run['tokens_per_second']:.1f}", f"{low:.1f} {high:.1f}"]
        if run["peer"]:
            ratio = f"{run['speedup'] or 0.0:.2f} of {run['baseline']}"
            table.add_row(run["name"], *rates, *[""] * 4, ratio, _same(run))
            continue
        step, spent = steps[run["weights"]], outside.get(run["weights"])
        times = [f"{step['seconds'] * 1e3:.1f}", f"{step['bytes_per_second'] / 1e9:.1f}"]
        share = step["fraction_of_read_bandwidth"]
        times.append("" if share is None else f"{share:.2f}")
        if spent is not None:
            times.append(f"{spent['outside_seconds'] * 1e3:.2f}")
        table.add_row(run["name"], *rates, *times)
    return table


def _ladder_table(batch: dict[str, Any]) -> "Table":
    headings = ["K", "tok/s", "speed\nup", "quartiles", "model", "for-\nmula", "c", "v", "alpha", "in\nloop"]
    table = new_table(f"Batch {batch['batch']}: ladders", [*headings, "same\ntext"])
    for run in batch["runs"]:
        if not run["draft"]:
            continue
        low, high = run["speedup_quartiles"] or (0.0, 0.0)
        formula = run["formula_speedup"]
        table.add_row(
            run["title"],
            ("" if run["draft_confidence_threshold"] == 0 else "<=")
            + ",".join(map(str, run["num_speculative_tokens"])),
            f"{run['tokens_per_second']:.1f}",
            f"{run['speedup'] or 0.0:.2f}" + (" " if run["of_record"] else "*"),
            f"{low:.2f} {high:.2f}",
            f"{run['predicted_speedup'] or 0.0:.2f}",
            "" if formula is None else f"{formula:.2f}",
            *(" ".join(f"{value:.2f}" for value in run[name]) for name in ("c", "v", "alpha")),
            f"{run['passes_over_alone'] or 0.0:.2f}",
            _same(run),
        )
    return table


def _formula_table(batch: dict[str, Any]) -> "Table":
    """What every K should give, from the c, v and alpha that were measured."""
    runs = [run for run in batch["runs"] if run["draft"] and run["by_k"]]
    ks = sorted({one["k"] for run in runs for one in run["by_k"]})
    table = new_table(f"Batch {batch['batch']}: the formula", [f"K={k}" for k in ks])
    for run in runs:
        found = {one["k"]: f"{one['expected_speedup']:.2f}" for one in run["by_k"]}
        table.add_row(run["name"], *(found.get(k, "") for k in ks))
    return table


def _same(run: dict[str, Any]) -> str:
    if run["lossless_equal"] is None:
        return ""
    if run["lossless_equal"]:
        return "yes"
    text = f"{len(run['forks'])} fork, at {min(fork['position'] for fork in run['forks'])}"
    return text if run["peer"] else f"[bold red]NO[/bold red] {text}"


def _remarks(batch: dict[str, Any]) -> list[str]:
    """Why figures do not count, each reason with those that it concerns."""
    reasons: dict[str, list[str]] = {}
    for run in batch["runs"]:
        if not run["of_record"]:
            reasons.setdefault(run["not_of_record_because"], []).append(run["name"])
    lines = []
    for reason, names in reasons.items():
        who = "" if len(names) == len(batch["runs"]) else f" ({'; '.join(names)})"
        lines.append(f"* no figure of record{who}: {reason}")
    return lines
