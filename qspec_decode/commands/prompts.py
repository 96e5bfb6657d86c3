"""Prompts of `qspec generate`: from options and files to ids, and where a bad one stands."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from qspec_decode import load_tokenizer, request
from qspec_decode.config import ModelConfig
from qspec_decode.tokenizer import Tokenizer
from qspec_kernels import UsageError


class PromptReader:
    """Turns every kind of prompt into ids that the model can take; errors begin with where the prompt stands.

    Parameters
    ----------
    directory
        The model's, whose tokenizer is read when a text must be encoded.
    limits
        Whose vocabulary and positions count.
    chat
        Put texts into the chat template, as what the user says.
    """

    def __init__(self, directory: str, limits: ModelConfig, chat: bool):
        self._directory, self._limits, self._chat = directory, limits, chat

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; a `CheckpointError` if there is none."""
        return load_tokenizer(self._directory)

    def text(self, text: str, where: str) -> list[int]:
        """Ids of a text."""
        if self._chat:
            return self._checked(self.tokenizer.encode_chat([{"role": "user", "content": text}]), where)
        return self._checked(self.tokenizer.encode(text), where)

    def ids(self, ids: list[int], where: str) -> list[int]:
        """Ids that were given as such."""
        if self._chat:
            raise UsageError(
                f"{where}: --chat needs text, not token ids", "Leave --chat out, or give the text."
            )
        return self._checked(ids, where)

    def batch(self, path: Path) -> list[list[int]]:
        """One row of ids per line of a JSONL file that is not blank."""
        # not splitlines(), which also breaks at U+2028 and other characters that JSON allows in a string
        rows = []
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if line.strip():
                rows.append(self._line(line, f"{path}, line {number}"))
        if not rows:
            raise UsageError(
                f"{path} holds no prompts", 'Write {"prompt": "..."} or {"prompt_ids": [...]} a line.'
            )
        return rows

    def _line(self, line: str, where: str) -> list[int]:
        expected = 'Every line is {"prompt": "..."} or {"prompt_ids": [...]}.'
        try:
            entry: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where}: not valid JSON: {error}", expected) from None
        keys = sorted(entry) if isinstance(entry, dict) else []
        if keys == ["prompt"] and isinstance(entry["prompt"], str):
            return self.text(entry["prompt"], where)
        if keys == ["prompt_ids"] and isinstance(entry["prompt_ids"], list):
            ids = entry["prompt_ids"]
            if all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                return self.ids(ids, where)
        found = (
            f"an object with {', '.join(keys) or 'nothing in it'}"
            if isinstance(entry, dict)
            else type(entry).__name__
        )
        raise UsageError(f"{where}: found {found} of no known form", expected)

    def _checked(self, ids: list[int], where: str) -> list[int]:
        request.check_prompt(ids, f"{where}: the prompt", self._limits.vocab_size, self._limits.max_positions)
        return ids


def parse_ids(text: str) -> list[int]:
    """The numbers of "1,2,3"."""
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise UsageError(
            f"--prompt-ids is {text!r}, expected numbers separated by commas",
            "For instance --prompt-ids 1,2,3.",
        ) from None


def read_text(path: Path) -> str:
    """A file's text; a `UsageError` where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
