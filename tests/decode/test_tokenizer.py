"""Text to ids and back, and conversations through a checkpoint's own template."""

import json
import sys
from datetime import datetime
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from qspec_decode import chat
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


def test_named_templates_without_a_default_are_none(directory: Path) -> None:
    only = {"chat_template": [{"name": "tool_use", "template": "no"}]}
    (directory / "tokenizer_config.json").write_text(json.dumps(only))
    assert load_tokenizer(directory).template is None


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{{ ['é'] | tojson(indent=1, ensure_ascii=true) }}", '[\n "\\u00e9"\n]'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{% if tools is not none %}tools{% endif %}{% if documents %}{% endif %}.", "."),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}no{% endfor %}.", "."),
        ("  {% if true %}\n.{% endif %}", "."),
    ],
)
def test_templates_have_what_transformers_gives_them(template: str, text: str) -> None:
    assert chat.render(template, MESSAGES, True, {}) == text


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "fails on these messages: SecurityError"),
        ("{{ messages.append(1) }}", "fails on these messages: SecurityError"),
        ("{{ messages[0]['name'].upper() }}", "fails on .* UndefinedError: .*no attribute 'name'"),
        ("{{ messages[0] + 'x' }}", "fails on these messages: TypeError"),
        ("{{ 1 // 0 }}", "fails on these messages: ZeroDivisionError"),
        ("x\n{% if %}", "line 2 of the chat template is broken: Expected an expression"),
        ("{{ 1 | no_filter }}", "line 1 of the chat template is broken: No filter named"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_named(template: str, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        chat.render(template, MESSAGES, True, {})


def test_a_template_may_refuse_messages() -> None:
    with pytest.raises(UsageError, match="refuses these messages: roles must alternate") as error:
        chat.render("{{ raise_exception('roles must alternate') }}", MESSAGES, True, {})
    # that is the caller's mistake and not the checkpoint's
    assert not isinstance(error.value, CheckpointError)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("tokenizer_config.json", b'{"chat_template": 3}', "tokenizer_config.json: chat_template is 3"),
        ("tokenizer_config.json", b'{"chat_template": ["x"]}', r"chat_template is \['x'\], expected a text"),
        ("chat_template.json", b'{"chat_template": {}}', r"chat_template.json: chat_template is \{\}"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not text"),
    ],
)
def test_a_template_that_is_no_text_is_named(
    directory: Path, file: str, content: bytes, problem: str
) -> None:
    (directory / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        load_tokenizer(directory)


def test_what_is_missing_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="has no chat template"):
        load_tokenizer(directory).encode_chat(MESSAGES)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match="jinja2, which is not installed"):
        load_tokenizer(directory).encode_chat(MESSAGES)
