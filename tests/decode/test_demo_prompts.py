"""The demo's prompts: held-out, from many files, and chosen without asking any draft."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
import torch

from qspec_decode import generate, load, load_tokenizer
from qspec_decode.bench.record import MAX_GREEDY_TOKENS, MAX_REPEATED_SHARE, MIN_PROMPTS, repeated_8gram_share
from qspec_decode.demo import prompts, train
from qspec_decode.demo.prompts import Prompt
from qspec_decode.tokenizer import Tokenizer
from qspec_kernels import UsageError
from tests.decode.tabular import TabularModel


def test_the_prompts_are_many_short_and_from_different_files() -> None:
    found = prompts.read()
    assert MIN_PROMPTS <= len(found) <= prompts.NUM_PROMPTS
    assert len({prompt.text for prompt in found}) == len(found)
    assert len({prompt.file for prompt in found[:16]}) >= 8
    assert all(prompt.text.endswith("\n") and prompt.line > 0 for prompt in found)
    assert not [p.file for p in found if "test" in p.file.split("/")[0]]


def test_greedy_text_of_the_bundled_model_keeps_to_the_limit() -> None:
    """Where this fails the checkpoint is newer than the prompts: `python -m qspec_decode.demo.prompts`."""
    model, tokenizer = load("demo", prompts.TARGETS), load_tokenizer("demo")
    ids = [tokenizer.encode(prompt.text) for prompt in prompts.read()]
    for target in prompts.TARGETS:
        out = generate(model, ids, target=target, max_new_tokens=MAX_GREEDY_TOKENS, eos_token_id=())
        assert repeated_8gram_share(out.token_ids[:MIN_PROMPTS]) <= MAX_REPEATED_SHARE
        assert repeated_8gram_share(out.token_ids) <= MAX_REPEATED_SHARE


def tokenizer_of(words: list[str]) -> Tokenizer:
    """Every word is a token; all that are not in the list are the first of it."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend)


def cycles(lengths: dict[int, int]) -> torch.Tensor:
    """A model that counts upward; from a token `start` of `lengths` on it goes round in so many tokens."""
    following = torch.arange(1, 257) % 256
    for start, length in lengths.items():
        following[start + length - 1] = start
    return (torch.nn.functional.one_hot(following, 256) * 9.0).expand(256, -1, -1)


def test_prompts_that_a_target_loops_on_are_left_out() -> None:
    # 48 tokens of a cycle of 36 repeat 5 of their 41 8-grams, those of a cycle of 37 repeat 4: below 10 %
    model = TabularModel(
        {"bf16": cycles({60: 1, 100: 37, 200: 36}), "w4a16": cycles({10: 3}), "mxfp4a8": cycles({150: 1})}
    )
    tokenizer = tokenizer_of([str(number) for number in range(256)])
    pieces = [Prompt("a.py", line, f"7 {token}") for line, token in enumerate([150, 60, 100, 200, 10] * 9)]
    kept = prompts.without_loops(pieces, tokenizer, model)
    assert [piece.text for piece in kept] == ["7 150", "7 100"] * 9
    assert {precision for precision, _ in model.calls} == set(prompts.TARGETS)


def test_pieces_start_at_definitions_and_end_with_a_line() -> None:
    source = "import x\n" + "".join(f"def f{i}(a):\n    return a + {i}\n\n\n" for i in range(60))
    pieces = list(prompts.cut("m.py", source, tokenizer_of(["?"])))
    assert len(pieces) > 2
    assert all(prompts.SHORTEST <= len(piece.text.split()) <= prompts.LONGEST for piece in pieces)
    lines = source.splitlines(keepends=True)
    ends = [0]
    for piece in pieces:
        length = piece.text.count("\n")
        assert "".join(lines[piece.line - 1 : piece.line - 1 + length]) == piece.text
        assert piece.text.lstrip().startswith("def ")
        assert piece.line > ends[-1]
        ends.append(piece.line + length - 1)


@pytest.mark.parametrize(
    ("sizes", "count", "files"),
    [
        ([4, 4, 4], 3, "abc"),
        ([1, 6, 2], 6, "abcbcb"),
        ([2, 1], 40, "aba"),
        ([], 40, ""),
    ],
)
def test_every_file_has_its_turn(sizes: Sequence[int], count: int, files: str) -> None:
    pieces = [Prompt(file, i, f"{file}{i}") for file, n in zip("abc", sizes, strict=False) for i in range(n)]
    chosen = prompts.choose(pieces, count)
    assert "".join(piece.file for piece in chosen) == files
    assert len(set(chosen)) == len(chosen)


@pytest.mark.usefixtures("bundled")
def test_too_few_prompts_are_no_prompts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(train, "source_files", lambda: ([], []))
    monkeypatch.setattr(sys, "argv", ["prompts", "--out", str(tmp_path / "prompts.jsonl")])
    with pytest.raises(UsageError, match="0 prompts are left"):
        prompts.main()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("bundled")
def test_chosen_prompts_are_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = [Path(train.__file__).with_name(name) for name in ("train.py", "widen.py")]
    monkeypatch.setattr(train, "source_files", lambda: ([], files))
    monkeypatch.setattr(prompts.sysconfig, "get_path", lambda _: str(files[0].parent))
    monkeypatch.setattr(prompts, "without_loops", lambda pieces, *_: pieces)
    monkeypatch.setattr(sys, "argv", ["prompts", "--out", str(tmp_path / "prompts.jsonl")])
    prompts.main()
    monkeypatch.setattr(prompts, "files", lambda _: tmp_path)
    found = prompts.read()
    assert len(found) >= MIN_PROMPTS
    assert [prompt.file for prompt in found[:4]] == ["train.py", "widen.py"] * 2
