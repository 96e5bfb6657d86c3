"""Text as it is decoded, by where each token came from."""

import io
import re

import pytest

from qspec_decode.streaming import ACCEPTED, BONUS, CORRECTION, RESET, TextStreamer
from qspec_decode.tokenizer import Tokenizer
from tests.decode.checkpoints import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(make_tokenizer())


def test_the_three_kinds_of_token_have_their_colours(tokenizer: Tokenizer) -> None:
    out = io.StringIO()
    streamer = TextStreamer(tokenizer, out, colour=True)
    a, b, c, d = (tokenizer.encode(letter)[0] for letter in "wxyz")
    streamer.put([0], [[a]], [0], [0])
    streamer.put([0], [[b, c]], [3], [1])
    streamer.put([0], [[d, a]], [1], [1])
    streamer.end()
    expected = f"w{ACCEPTED}x{RESET}{CORRECTION}y{RESET}{ACCEPTED}z{RESET}{BONUS}w{RESET}\n"
    assert out.getvalue() == expected


@pytest.mark.parametrize("text", ["def f(x):\n    return 'π ≈ 3'\n", "日本語 and 🦊🦊", " leading", ""])
def test_the_text_comes_out_whole_however_characters_are_cut(tokenizer: Tokenizer, text: str) -> None:
    out = io.StringIO()
    streamer = TextStreamer(tokenizer, out, colour=False)
    ids = tokenizer.encode(text)
    for token in ids:
        streamer.put([0], [[token]], [0], [0])
        assert "\N{REPLACEMENT CHARACTER}" not in out.getvalue()
    streamer.end()
    assert out.getvalue() == text + "\n"


def test_only_the_first_row_is_shown_and_half_a_character_comes_last(tokenizer: Tokenizer) -> None:
    out = io.StringIO()
    streamer = TextStreamer(tokenizer, out, colour=False)
    half = tokenizer.encode("é")[:1]
    assert tokenizer.decode(half) == "\N{REPLACEMENT CHARACTER}"
    streamer.put([0, 1], [tokenizer.encode("a"), tokenizer.encode("b")], [0, 0], [0, 0])
    streamer.put([0], [half], [0], [0])
    assert out.getvalue() == "a"
    streamer.end()
    assert re.fullmatch("a\N{REPLACEMENT CHARACTER}\n", out.getvalue())


def test_what_opens_a_text_comes_once_and_with_its_first_tokens(tokenizer: Tokenizer) -> None:
    out = io.StringIO()
    streamer = TextStreamer(tokenizer, out, colour=False, opening=lambda: print("> ", end="", file=out))
    assert out.getvalue() == ""
    for letter in "ab":
        streamer.put([0], [tokenizer.encode(letter)], [0], [0])
    streamer.end()
    assert out.getvalue() == "> ab\n"
