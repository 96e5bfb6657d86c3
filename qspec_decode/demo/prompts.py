"""The demo's prompts: pieces of Python source that the bundled model was not trained on.

    python -m qspec_decode.demo.prompts --tokenizer DIR

writes `prompts.jsonl` anew from the standard library of the Python it runs on. The text is CPython's,
under the licence in `PSF-LICENSE.txt`.
"""

import argparse
import json
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path

from qspec_decode.tokenizer import Tokenizer

NUM_PROMPTS = 40
SHORTEST, LONGEST = 64, 128
# tables of character codes say nothing about drafting, tests little about real code
_LEFT_OUT = re.compile(r"(^|/)(tests?|idle_test|encodings)/")
_START = re.compile(r"\s*(def|class|async def) \w")


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


def choose(pieces: list[list[Prompt]], count: int) -> list[Prompt]:
    """`count` of them: one of every file, then a second of every file, and so on, spread over each file."""
    share = -(-count // len(pieces))
    while sum(min(len(of_file), share) for of_file in pieces) < count:
        share += 1
    spread = [of_file[:: max(1, len(of_file) // share)][:share] for of_file in pieces]
    rounds = (prompt for column in zip_longest(*spread) for prompt in column if prompt is not None)
    return list(rounds)[:count]


def main() -> None:
    """Write `prompts.jsonl` beside this file."""
    from qspec_decode.demo.train import source_files

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory with tokenizer.json")
    tokenizer = Tokenizer.from_dir(parser.parse_args().tokenizer)
    pieces = []
    for path in source_files()[1]:
        name = path.relative_to(sysconfig.get_path("stdlib")).as_posix()
        if not _LEFT_OUT.search(name):
            pieces.append(list(cut(name, path.read_text(encoding="utf-8"), tokenizer)))
    chosen = choose([of_file for of_file in pieces if of_file], NUM_PROMPTS)
    text = "".join(json.dumps(asdict(prompt), ensure_ascii=False) + "\n" for prompt in chosen)
    Path(__file__).with_name("prompts.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
