"""Text to ids and back, and conversations through a checkpoint's own template."""

import json
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from qspec_decode.load import load_tokenizer
from qspec_kernels import CheckpointError, UsageError

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A byte-level tokenizer that puts <s> before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0} | {letter: index + 1 for index, letter in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.add_special_tokens(["<s>"])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_text_goes_there_and_back(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode("naïve — code\n")
    assert ids[0] == 0
    assert tokenizer.encode("naïve — code\n", add_special_tokens=False) == ids[1:]
    assert tokenizer.decode(ids) == "naïve — code\n"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>naïve — code\n"


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "string", "list"])
def test_a_template_is_found_wherever_it_is_kept(directory: Path, place: str) -> None:
    config: dict[str, object] = {"bos_token": {"content": "<s>"}}
    if place == "chat_template.jinja":
        (directory / place).write_text(TEMPLATE)
    elif place == "chat_template.json":
        (directory / place).write_text(json.dumps({"chat_template": TEMPLATE}))
    elif place == "string":
        config["chat_template"] = TEMPLATE
    else:
        other = {"name": "tool_use", "template": "no"}
        config["chat_template"] = [other, {"name": "default", "template": TEMPLATE}]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode_chat(MESSAGES)
    # the template writes <s> itself: it is there once
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>[user]hi[assistant]"
    without = tokenizer.encode_chat(MESSAGES, add_generation_prompt=False)
    assert tokenizer.decode(without) == "[user]hi"


def test_templates_run_in_a_sandbox(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(CheckpointError, match="the chat template refuses"):
        load_tokenizer(directory).encode_chat(MESSAGES)
    (directory / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(CheckpointError, match="roles must alternate"):
        load_tokenizer(directory).encode_chat(MESSAGES)


def test_what_is_missing_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="has no chat template"):
        load_tokenizer(directory).encode_chat(MESSAGES)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match="jinja2, which is not installed"):
        load_tokenizer(directory).encode_chat(MESSAGES)
