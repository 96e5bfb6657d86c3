"""`qspec generate`."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qspec_decode.commands.outcome import note, print_json

if TYPE_CHECKING:
    from qspec_decode.commands.plan import Options, Plan
    from qspec_decode.output import DecodingOutput
    from qspec_decode.streaming import TextStreamer
    from qspec_decode.tokenizer import Tokenizer

PROMPT, LADDER, SAMPLING, WEIGHTS = "Prompt (one of these)", "Ladder", "Sampling", "Weights"


def generate(
    model: Annotated[
        str, typer.Argument(help="A Hugging Face checkpoint directory, or 'demo'.", metavar="MODEL")
    ],
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The prompt.", rich_help_panel=PROMPT)
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file that holds the prompt.", rich_help_panel=PROMPT),
    ] = None,
    prompt_ids: Annotated[
        str | None, typer.Option(metavar="1,2,3", help="The prompt as token ids.", rich_help_panel=PROMPT)
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='One {"prompt": "..."} or {"prompt_ids": [...]} a line, decoded together.',
            rich_help_panel=PROMPT,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(metavar="PRECISION", help="The precision whose text you want.", rich_help_panel=LADDER),
    ] = "bf16",
    draft: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LEVEL",
            help="What drafts, from the level next to the target downward: a precision (mxfp4, w4a8, w4a4, "
            "...), ngram, small (the demo's sibling) or the directory of a checkpoint with the same "
            "tokenizer. Repeat for a deeper ladder. "
            "Otherwise w4a8 under a 4-bit target, mxfp4 under a 16-bit one.",
            rich_help_panel=LADDER,
        ),
    ] = None,
    num_speculative_tokens: Annotated[
        list[int] | None,
        typer.Option(
            "--num-speculative-tokens",
            "-K",
            metavar="K",
            help="Tokens drafted per round: once for all levels, or once per --draft. Otherwise as many as "
            "are likely to stand, and 3 or 4 where tokens are sampled.",
            rich_help_panel=LADDER,
        ),
    ] = None,
    draft_confidence_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="End greedy drafting when the chance that the whole draft stands is less, 0 <= P < 1. "
            "Otherwise always K, or, if K is left out too, what the costs of the levels make worth while.",
            rich_help_panel=LADDER,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens per prompt at most.")] = 128,
    temperature: Annotated[
        float,
        typer.Option(
            metavar="T",
            help="0, the default, is greedy; the checkpoint's generation_config.json is not asked.",
            rich_help_panel=SAMPLING,
        ),
    ] = 0.0,
    top_k: Annotated[
        int | None,
        typer.Option(metavar="K", help="Keep the K most probable tokens.", rich_help_panel=SAMPLING),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="Keep the most probable tokens up to this mass.", rich_help_panel=SAMPLING
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="S", help="Makes a sampled run repeatable.", rich_help_panel=SAMPLING),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            metavar="32|64|128|-1",
            help="Inputs per scale of INT4 weights; -1 is one scale per output. Otherwise 128.",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    rotate: Annotated[
        bool,
        typer.Option(
            "--rotate",
            help="Rotate 4-bit weights (QuaRot): low-bit activations agree more often.",
            rich_help_panel=WEIGHTS,
        ),
    ] = False,
    quant_lm_head: Annotated[
        bool,
        typer.Option(
            "--quant-lm-head",
            help="A 4-bit target reads its output matrix in 4 bits, too: faster, and another text.",
            rich_help_panel=WEIGHTS,
        ),
    ] = False,
    device: Annotated[
        str,
        typer.Option(metavar="cpu|cuda", help="Where the model runs.", rich_help_panel=WEIGHTS),
    ] = "cpu",
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Decode plainly as well: is the text the same, and how much is saved?"
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Decode prompts with a model that drafts for itself: the target's own text, sooner.

    Text goes to standard output, statistics to standard error. The text of a single prompt appears as it is
    decoded, on a terminal in colours that tell accepted drafts, corrections and bonus tokens apart.
    """
    from qspec_decode.commands import plan

    options = plan.Options(
        model, target, draft or [], num_speculative_tokens or [], draft_confidence_threshold, max_new_tokens,
        temperature, top_k, top_p, seed, group_size, rotate, quant_lm_head, device, chat,
    )  # fmt: skip
    planned = plan.plan(options, prompt, prompt_file, prompt_ids, batch)
    _run(options, planned, compare, as_json)


def _run(options: "Options", planned: "Plan", compare: bool, as_json: bool) -> None:
    from qspec_decode.bench.document import run_document
    from qspec_decode.generate import generate as decode_plainly
    from qspec_decode.speculate import speculate

    note(f"loading {options.model} as {', '.join(planned.precisions)} ...")
    began = time.perf_counter()
    model, drafts = planned.load()
    load_seconds = time.perf_counter() - began
    tokenizer = planned.tokenizer
    streams = tokenizer is not None and len(planned.input_ids) == 1 and not as_json
    with ExitStack() as waiting:
        # before anything moves on standard error, for what does takes over standard output
        streamer = (
            _streamer(tokenizer, planned.input_ids[0], waiting.close) if tokenizer and streams else None
        )
        waiting.enter_context(_patience())
        fast = speculate(
            model,
            planned.input_ids,
            target=options.target,
            draft=drafts,
            sampling=planned.sampling,
            config=planned.config,
            streamer=streamer,
        )
    baseline = None
    if compare:
        with _patience():
            again = planned.with_seeds(fast.seeds)
            baseline = [decode_plainly(model, planned.input_ids, target=options.target, sampling=again)]
    document = run_document(
        [fast],
        baseline,
        drafts=planned.draft_names,
        temperature=options.temperature,
        decode=tokenizer.decode if tokenizer else None,
        load_seconds=load_seconds,
    )
    if as_json:
        print_json(document)
        return
    if not streams:
        for index, text in enumerate(document["text"] or document["token_ids"]):
            print(f"[{index + 1}] {text}")
    _print_statistics(fast, document)


def _streamer(tokenizer: "Tokenizer", prompt: list[int], clear: Callable[[], None]) -> "TextStreamer":
    """What writes the text; on a terminal the prompt comes before it, where `clear` has made room."""
    from qspec_decode.streaming import DIM, LEGEND, RESET, TextStreamer

    def opening() -> None:
        clear()
        note(LEGEND)
        print(f"{DIM}{tokenizer.decode(prompt)}{RESET}", end="", flush=True)

    colour = sys.stdout.isatty()
    return TextStreamer(tokenizer, sys.stdout, colour=colour, opening=opening if colour else None)


@contextmanager
def _patience() -> Iterator[None]:
    """Something that moves on a terminal's standard error."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status("decoding ..."):
        yield


def _print_statistics(fast: "DecodingOutput", document: dict[str, Any]) -> None:
    note(
        f"\n{document['num_tokens']} tokens, {document['tokens_per_second']:.1f} tokens/s after a prefill of "
        f"{document['prefill_seconds']:.2f} s; {' <- '.join([document['target'], *document['draft']])}, "
        f"lossless against {document['reference']}"
    )
    for level in fast.levels:
        note(
            f"{level.name}: {level.acceptance_rate:.0%} of {level.num_draft_tokens} drafts accepted, "
            f"{level.mean_acceptance_length:.2f} tokens per round with drafts"
        )
    if fast.levels and document["temperature"]:
        note(f"seeds: {', '.join(str(tuple(seed)) for seed in document['seeds'])}")
    if document["baseline_tokens_per_second"] is not None:
        same = {True: "the same text", False: "ANOTHER TEXT", None: "another draw of the same distribution"}
        note(
            f"plain decoding: {document['baseline_tokens_per_second']:.1f} tokens/s, "
            f"{same[document['lossless_equal']]}; speed-up {document['speedup'] or 0:.2f}"
        )
