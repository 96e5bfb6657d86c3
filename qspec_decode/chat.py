"""Chat templates: where checkpoints keep them, and rendering them in a sandbox."""

import json
import reprlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from qspec_decode.config import read_json
from qspec_kernels import CheckpointError, UsageError

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


def read_template(directory: Path) -> tuple[str | None, dict[str, str]]:
    """(template or None, special tokens by name) of a checkpoint directory.

    `chat_template.jinja` comes first, then `chat_template.json`, then `tokenizer_config.json`, as in
    transformers; of several named templates the one called "default" is taken.

    Raises
    ------
    CheckpointError
        When one of these files cannot be read or its template is no text.
    """
    path = directory / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    special = {}
    for name in _SPECIAL:
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[name] = token
    jinja, older = directory / "chat_template.jinja", directory / "chat_template.json"
    if jinja.exists():
        try:
            return jinja.read_text(encoding="utf-8"), special
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{jinja} is not text: {error}", "Download the file again.") from None
    if older.exists():
        path, config = older, read_json(older)
    template = config.get("chat_template")
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        template = {str(entry.get("name")): entry.get("template") for entry in template}.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"{path}: chat_template is {reprlib.repr(template)}, expected a text, or a list of objects "
            "with a name and a template"
        )
    return template, special


def render(
    template: str, messages: Sequence[dict[str, str]], add_generation_prompt: bool, special: dict[str, str]
) -> str:
    """The text of a conversation. The template is foreign code: it runs in jinja2's sandbox.

    Raises
    ------
    UsageError
        When the template refuses these messages, or jinja2 is not installed.
    CheckpointError
        When the template is broken, or fails on these messages.
    """
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UsageError("chat templates need jinja2, which is not installed", "pip install jinja2") from None

    def refuse(message: str) -> None:
        raise UsageError(f"the chat template refuses these messages: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # templates ask whether these are none, which something undefined is not
    absent = {"tools": None, "documents": None}
    try:
        return environment.from_string(template).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, **absent, **special
        )
    except UsageError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(
            f"line {error.lineno} of the chat template is broken: {error.message}"
        ) from None
    except Exception as error:  # foreign code runs into anything: a missing key, a sum of unlike types
        raise CheckpointError(
            f"the chat template fails on these messages: {type(error).__name__}: {error}",
            "Pass messages as the checkpoint's own documentation shows them, or the prompt as plain text.",
        ) from None


def _to_json(value: Any, **options: Any) -> str:
    """jinja2's own filter escapes for HTML; a template's keywords are those of `json.dumps`."""
    return json.dumps(value, **{"ensure_ascii": False, **options})
