"""Chat templates: where checkpoints keep them, and rendering them in a sandbox."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from qspec_decode.config import read_json
from qspec_kernels import CheckpointError, UsageError


def read_template(directory: Path) -> tuple[str | None, dict[str, str]]:
    """(template or None, special tokens by name) of a checkpoint directory.

    `chat_template.jinja` comes first, then `chat_template.json`, then `tokenizer_config.json`, as in
    transformers; of several named templates the one called "default" is taken.
    """
    path = directory / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[name] = token
    jinja, older = directory / "chat_template.jinja", directory / "chat_template.json"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8"), special
    template = (read_json(older) if older.exists() else config).get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template, special


def render(
    template: str, messages: Sequence[dict[str, str]], add_generation_prompt: bool, special: dict[str, str]
) -> str:
    """The text of a conversation. The template is foreign code: it runs in jinja2's sandbox.

    Raises
    ------
    UsageError
        When jinja2 is not installed.
    CheckpointError
        When the template cannot be rendered for these messages.
    """
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UsageError("chat templates need jinja2, which is not installed", "pip install jinja2") from None

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, **special
        )
    except jinja2.TemplateError as error:
        raise CheckpointError(f"the chat template refuses these messages: {error}") from None
