"""The demo's prompts: pieces of Python source that the bundled model was not trained on.

    python -m qspec_decode.demo.prompts

chooses them anew for the bundled checkpoint, from the standard library of the Python it runs on, and writes
`prompts.jsonl`. So small a model's greedy text often falls into a loop, and loops flatter every drafter. So
a piece is taken only if plain greedy decoding of it keeps, for each target of the demo, to the share
of repeated 8-grams that a figure of record may have. Drafts have no part in the rule. The text is CPython's,
under the licence in `PSF-LICENSE.txt`.
"""

import argparse
import json
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import groupby, zip_longest
from pathlib import Path

from qspec_decode.bench.contenders import LADDERS
from qspec_decode.bench.record import (
    MAX_GREEDY_TOKENS,
    MAX_REPEATED_SHARE,
    MIN_PROMPTS,
    repeated_8gram_share,
)
from qspec_decode.generate import generate
from qspec_decode.load import load, load_tokenizer
from qspec_decode.progress import track
from qspec_decode.protocol import Model
from qspec_decode.sampling import SamplingParams
from qspec_decode.tokenizer import Tokenizer
from qspec_kernels import UsageError

NUM_PROMPTS = 40
SHORTEST, LONGEST = 64, 128
TARGETS = tuple(dict.fromkeys(contender.target for contender in LADDERS))
# tables of character codes say nothing about drafting, tests little about real code
_LEFT_OUT = re.compile(r"(^|/)(tests?|idle_test|encodings)/")
_START = re.compile(r"\s*(def|class|async def) \w")
_BATCH = 32


@dataclass(frozen=True)
class Prompt:
    """Some whole lines of a held-out file.

    Parameters
    ----------
    file, line
        Where the text stands: path below the standard library, number of its first line.
    text
        Ends with a line break, so that the model goes on with a new line.
    """

    file: str
    line: int
    text: str


def read() -> list[Prompt]:
    """The prompts in the order in which they are used: neighbours are from different files."""
    lines = files("qspec_decode.demo").joinpath("prompts.jsonl").read_text(encoding="utf-8").split("\n")
    return [Prompt(**json.loads(line)) for line in lines if line]


def cut(name: str, source: str, tokenizer: Tokenizer) -> Iterator[Prompt]:
    """Pieces of one file that start at a definition and do not overlap; lengths vary from piece to piece."""
    lines = source.splitlines(keepends=True)
    first, lengths = 0, range(SHORTEST, LONGEST, 12)
    while first < len(lines):
        if not _START.match(lines[first]):
            first += 1
            continue
        wanted = lengths[first % len(lengths)]
        for end in range(first + 1, len(lines) + 1):
            text = "".join(lines[first:end])
            length = len(tokenizer.encode(text))
            if length >= wanted:
                break
        else:
            return
        if length <= LONGEST:
            yield Prompt(name, first + 1, text)
        first = end


def without_loops(
    pieces: Sequence[Prompt], tokenizer: Tokenizer, model: Model, targets: Sequence[str] = TARGETS
) -> list[Prompt]:
    """Those whose greedy text, as long as it may be to count, repeats few 8-grams under every target."""
    sampling = SamplingParams(max_new_tokens=MAX_GREEDY_TOKENS, eos_token_id=())
    kept = []
    starts = range(0, len(pieces), _BATCH)
    for start in track(starts, len(starts), "decoding held-out pieces"):
        batch = pieces[start : start + _BATCH]
        ids = [tokenizer.encode(piece.text) for piece in batch]
        texts = [generate(model, ids, target=target, sampling=sampling).token_ids for target in targets]
        kept += [
            piece
            for piece, *rows in zip(batch, *texts, strict=True)
            if all(repeated_8gram_share([row]) <= MAX_REPEATED_SHARE for row in rows)
        ]
    return kept


def choose(pieces: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most `count`: one of every file, then a second of every file, and so on, spread over each file.

    Pieces of a file stand together.
    """
    of_files = [list(group) for _, group in groupby(pieces, key=lambda piece: piece.file)]
    count = min(count, len(pieces))
    share = -(-count // max(1, len(of_files)))
    while sum(min(len(of_file), share) for of_file in of_files) < count:
        share += 1
    spread = [of_file[:: max(1, len(of_file) // share)][:share] for of_file in of_files]
    rounds = (prompt for column in zip_longest(*spread) for prompt in column if prompt is not None)
    return list(rounds)[:count]


def main() -> None:
    """Write `prompts.jsonl`.

    Raises
    ------
    UsageError
        When fewer prompts are left than a figure of record takes; nothing is written then.
    """
    from qspec_decode.demo.train import source_files

    parser = argparse.ArgumentParser(description="Choose the demo's prompts from held-out files.")
    parser.add_argument("--checkpoint", default="demo", help="directory of the target; else the bundled one")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("prompts.jsonl"))
    args = parser.parse_args()
    tokenizer, model = load_tokenizer(args.checkpoint), load(args.checkpoint, TARGETS)
    pieces: list[Prompt] = []
    for path in source_files()[1]:
        name = path.relative_to(sysconfig.get_path("stdlib")).as_posix()
        if not _LEFT_OUT.search(name):
            pieces += cut(name, path.read_text(encoding="utf-8"), tokenizer)
    kept = without_loops(pieces, tokenizer, model)
    chosen = choose(kept, NUM_PROMPTS)
    print(f"{len(kept)} of {len(pieces)} held-out pieces go on without looping, {len(chosen)} are chosen")
    if len(chosen) < MIN_PROMPTS:
        raise UsageError(f"{len(chosen)} prompts are left, figures of record take {MIN_PROMPTS}")
    text = "".join(json.dumps(asdict(prompt), ensure_ascii=False) + "\n" for prompt in chosen)
    args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
