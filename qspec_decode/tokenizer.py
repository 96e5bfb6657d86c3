"""`Tokenizer`: text to ids and back, as a checkpoint's `tokenizer.json` says."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from qspec_decode import chat
from qspec_decode import config as configs
from qspec_kernels import CheckpointError, UsageError


class Tokenizer:
    """A fast tokenizer with the checkpoint's chat template.

    Parameters
    ----------
    backend
        The loaded `tokenizer.json`.
    template
        Jinja source of the chat template, or None.
    special_tokens
        Texts that templates refer to by name, such as {"bos_token": "<s>"}.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        template: str | None = None,
        special_tokens: dict[str, str] | None = None,
    ):
        self.backend = backend
        self.template = template
        self.special_tokens = special_tokens or {}

    @classmethod
    def from_dir(cls, directory: Path) -> "Tokenizer":
        """Read `tokenizer.json`, and the template from any of the places it is kept in.

        Raises
        ------
        CheckpointError
            When `tokenizer.json` is missing or cannot be read.
        """
        configs.check_directory(directory)
        path = directory / "tokenizer.json"
        if not path.exists():
            raise CheckpointError(
                f"{directory} has no tokenizer.json", "Pass token ids, or a checkpoint with a fast tokenizer."
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for every kind of damage
            raise CheckpointError(f"{path} cannot be read: {error}", "Download the file again.") from None
        return cls(backend, *chat.read_template(directory))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, with the tokens that the checkpoint puts before every text unless told not to."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids. Ids that only pad the vocabulary have none."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def encode_chat(
        self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Ids of a conversation, [{"role": ..., "content": ...}, ...], rendered by the chat template.

        Raises
        ------
        UsageError
            When the checkpoint has no template, or one that fails on or refuses these messages, or jinja2
            is not installed.
        """
        if self.template is None:
            raise UsageError("the checkpoint has no chat template", "Pass the prompt as plain text.")
        text = chat.render(self.template, messages, add_generation_prompt, self.special_tokens)
        # templates write the special tokens themselves
        return self.encode(text, add_special_tokens=False)
