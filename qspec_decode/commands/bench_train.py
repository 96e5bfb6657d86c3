"""`qspec bench train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from qspec_decode.commands.bench import new_table, wide_console
from qspec_decode.commands.json_file import check_file, write_file
from qspec_decode.commands.outcome import note


def train(
    minutes: Annotated[
        float, typer.Option(help="Of training at most. It ends earlier after eight passes over the text.")
    ] = 10.0,
    size: Annotated[
        str, typer.Option(help="large (126M parameters), or as bundled: target (6.75M), small (0.7M).")
    ] = "large",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the checkpoint goes; otherwise a directory in the user's cache. One that is there "
            "already is measured, not trained.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, or cpu to do without a GPU; otherwise the GPU.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything that was measured.")
    ] = None,
) -> None:
    """Train a larger demo model, and measure how often drafts stand on it.

    The recipe is the bundled model's: the Python standard library's source, one file in forty held out, the
    same tokenizer, AdamW with a cosine that ends with the minutes. The checkpoint is an ordinary Hugging Face
    directory, which every command takes. It appears when it is complete; Ctrl-C ends training and keeps what
    was learned.

    Measured are, on held-out text: bits per byte in every precision, and for every draft how often its most
    probable token is its target's (what greedy decoding accepts) and the chance that a sampled one stands.
    """
    from qspec_decode.bench.gpu import train as bench

    check_file(json_file)
    document = bench.run(bench.Request(minutes, size, out, device), note)
    if json_file is not None:
        write_file(json_file, document)
    print_report(document)


def print_report(document: dict[str, Any]) -> None:
    """What was found, as tables on stderr."""
    console = wide_console(100, stderr=True)
    card, training = document["card"], document["training"]
    bits = card["held_out_bits_per_byte"]
    console.print(
        f"{document['directory']}: {document['parameters'] / 1e6:.1f}M parameters, {card['steps']} steps"
        + ("" if bits is None else f", {bits:.4f} bits per byte on all held-out files")
    )
    if training:
        console.print(
            f"trained in {training['seconds'] / 60:.1f} minutes at {training['tokens_per_second']:.0f} "
            f"tokens/s, {training['passes']:.1f} passes over the text"
        )
    console.print(f"on {document['num_windows']} windows of held-out text:")
    table = new_table(("precision",), ("bits per byte",))
    for one in document["precisions"]:
        table.add_row(one["precision"], f"{one['bits_per_byte']:.4f}")
    console.print(table)
    table = new_table(("target", "draft"), ("same token", "sampled stands"))
    for one in document["agreement"]:
        table.add_row(one["target"], one["draft"], f"{one['top1']:.3f}", f"{one['sampled']:.3f}")
    console.print(table)
    console.print("decoding greedily behind some of them:")
    table = new_table(("target", "draft"), ("drafts stand", "tokens of a round"))
    for one in document["acceptance"]:
        numbers = (f"{one[name]:.3f}" for name in ("per_token_acceptance", "mean_acceptance_length"))
        table.add_row(one["target"], one["draft"], *numbers)
    console.print(table)
