"""The command `qspec`."""

from collections.abc import Callable
from typing import Annotated

import typer

from qspec_decode.commands import bench
from qspec_decode.commands.bench_decode import decode
from qspec_decode.commands.bench_gpu import gpu
from qspec_decode.commands.bench_train import train
from qspec_decode.commands.demo import demo
from qspec_decode.commands.doctor import doctor
from qspec_decode.commands.generate import generate
from qspec_decode.commands.outcome import Commands

app = typer.Typer(
    cls=Commands,
    name="qspec",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> bool:
    if wanted:
        import qspec_decode

        print(f"qspec {qspec_decode.__version__}")
        raise typer.Exit
    return wanted


@app.callback(
    help="Make language models generate faster without changing what they say.\n\n"
    "A cheap version of the model drafts a few tokens, the model itself verifies them in one pass. Greedy "
    "text is the same, token for token; sampled text has the same distribution.",
    epilog="Start with [bold]qspec demo[/bold]: it needs no download, no GPU and about two minutes.\n\n"
    "Then [bold]qspec generate MODEL --prompt TEXT --compare[/bold] with a Hugging Face directory of your "
    "own, and [bold]qspec doctor[/bold] where something is slower than you expect.",
)
def qspec(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The command group, and what it does before any command."""


def _help(command: Callable[..., None]) -> str:
    # in a docstring lines are broken where the source is wide enough, on a terminal where it is
    paragraphs = (command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


EXAMPLES = "[bold]Examples[/bold]\n\n"

app.command(
    help=_help(demo),
    epilog=EXAMPLES + "qspec demo\n\n"
    "qspec demo --scale 1b --prompts 16 --json > record.json    [dim]figures of record[/dim]\n\n"
    "qspec demo --scale none --prompts 2 --max-new-tokens 32    [dim]a smoke test in seconds[/dim]",
)(demo)
app.command(
    help=_help(generate),
    epilog=EXAMPLES + "qspec generate demo --prompt 'def read_lines(path):'\n\n"
    "qspec generate ~/Llama-3.2-1B --prompt-file question.txt --draft mxfp4 --draft ngram --compare\n\n"
    "qspec generate ~/Qwen3-8B --target w4a16 --draft w4a8 --rotate --chat --prompt 'Why is the sky blue?' "
    "--temperature 0.7 --top-p 0.9\n\n"
    "qspec generate ~/Llama-3.1-8B --draft ~/Llama-3.2-1B -K 3 --batch questions.jsonl --json",
)(generate)
app.command(
    epilog=EXAMPLES
    + "qspec doctor\n\nQSPEC_CPU_ISA=avx2 qspec doctor    [dim]what another library would do[/dim]"
)(doctor)
bench.app.command(
    help=_help(bench.kernels),
    epilog=EXAMPLES + "qspec bench kernels --json kernels.json    [dim]a quarter of an hour[/dim]\n\n"
    "qspec bench kernels --ops linear --shapes 4096x14336 --m 1,5,8    [dim]half a minute[/dim]",
)(bench.kernels)
bench.app.command(
    help=_help(decode),
    epilog=EXAMPLES + "qspec bench decode --scale 1b --json decode.json    [dim]ten minutes[/dim]\n\n"
    "qspec bench decode ~/Llama-3.2-1B --ladders 'bf16<-mxfp4;bf16<-mxfp4<-ngram' -K 2,4\n\n"
    "qspec bench decode --scale none --prompts 2 --peers none    [dim]a smoke test in seconds[/dim]",
)(decode)
bench.app.command(
    help=_help(gpu),
    epilog=EXAMPLES
    + "qspec bench gpu --json gpu.json    [dim]first on a new machine: under 8 minutes[/dim]\n\n"
    "qspec bench gpu --ops linear_w4a8 --shapes llama-3-8b.down --m 1,16    [dim]one kernel[/dim]\n\n"
    "qspec bench gpu --budget 60    [dim]what is most common; the rest is listed as dropped[/dim]",
)(gpu)
bench.app.command(
    help=_help(train),
    epilog=EXAMPLES + "qspec bench train --minutes 10 --json train.json    [dim]needs a GPU[/dim]\n\n"
    "qspec bench train --size small --device cpu --minutes 5 --out ~/tiny    [dim]without one[/dim]",
)(train)
app.add_typer(bench.app)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
