"""Bad input of `qspec`: what is said about it, and exit status 2."""

import json
import shutil
from pathlib import Path

import pytest

from tests.decode.command_line import run

pytestmark = pytest.mark.usefixtures("bundled")

PROMPT = ("--prompt", "x")
# arguments, what the message must name
BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no-command": (("jump",), "jump"),
    "unknown-option": (("generate", "demo", *PROMPT, "--depth", "3"), "--depth"),
    "not-a-number": (("generate", "demo", *PROMPT, "--temperature", "warm"), "--temperature"),
    "no-prompt": (("generate", "demo"), "no prompt"),
    "two-prompts": (("generate", "demo", *PROMPT, "--prompt-ids", "1"), "--prompt and --prompt-ids"),
    "empty-prompt": (("generate", "demo", "--prompt", ""), "--prompt: the prompt is empty"),
    "no-ids": (("generate", "demo", "--prompt-ids", ""), "empty"),
    "ids-no-numbers": (("generate", "demo", "--prompt-ids", "1,two"), "1,two"),
    "ids-outside": (("generate", "demo", "--prompt-ids", "1,600"), "600"),
    "ids-negative": (("generate", "demo", "--prompt-ids=-1"), "-1"),
    "too-long": (("generate", "demo", "--prompt-ids", ",".join(["1"] * 1024)), "1024 positions"),
    "no-file": (("generate", "demo", "--prompt-file", "/nowhere/x.txt"), "/nowhere/x.txt"),
    "no-model": (("generate", "/nowhere/model", *PROMPT), "/nowhere/model"),
    "unknown-target": (("generate", "demo", *PROMPT, "--target", "int3"), "int3"),
    "unknown-draft": (("generate", "demo", *PROMPT, "--draft", "w2a2"), "w2a2"),
    "ngram-not-last": (("generate", "demo", *PROMPT, "--draft", "ngram", "--draft", "mxfp4"), "ngram"),
    "small-of-another": (("generate", "BUNDLE/target", *PROMPT, "--draft", "small"), "sibling"),
    "k-zero": (("generate", "demo", *PROMPT, "-K", "0"), "num_speculative_tokens is 0"),
    "k-count": (("generate", "demo", *PROMPT, "-K", "1", "-K", "2"), "2 times for 1"),
    "no-tokens": (("generate", "demo", *PROMPT, "--max-new-tokens", "0"), "max_new_tokens is 0"),
    "cold": (("generate", "demo", *PROMPT, "--temperature=-1"), "-1"),
    "infinite": (("generate", "demo", *PROMPT, "--temperature", "nan"), "nan"),
    "top-p-range": (("generate", "demo", *PROMPT, "--temperature", "1", "--top-p", "0"), "top_p is 0"),
    "top-k-range": (("generate", "demo", *PROMPT, "--temperature", "1", "--top-k=-2"), "top_k is -2"),
    "top-p-greedy": (("generate", "demo", *PROMPT, "--top-p", "0.9"), "--top-p 0.9"),
    "top-k-greedy": (("generate", "demo", *PROMPT, "--top-k", "5"), "--top-k 5"),
    "seed-greedy": (("generate", "demo", *PROMPT, "--seed", "5"), "--seed 5"),
    "seed-negative": (("generate", "demo", *PROMPT, "--seed=-5", "--temperature", "1"), "-5"),
    "group-size-without-int4": (("generate", "demo", *PROMPT, "--group-size", "64"), "--group-size 64"),
    "group-size": (("generate", "demo", *PROMPT, "--target", "w4a16", "--group-size", "33"), "33"),
    "rotate-without-4-bit": (("generate", "demo", *PROMPT, "--draft", "ngram", "--rotate"), "--rotate"),
    "quant-lm-head": (("generate", "demo", *PROMPT, "--draft", "w4a8", "--quant-lm-head"), "--quant-lm-head"),
    "no-default-draft": (("generate", "demo", *PROMPT, "--target", "mxfp4"), "mxfp4"),
    "unknown-device": (("generate", "demo", *PROMPT, "--device", "tpu"), "device is 'tpu'"),
    "no-template": (("generate", "demo", *PROMPT, "--chat"), "chat template"),
    "chat-with-ids": (("generate", "demo", "--prompt-ids", "1", "--chat"), "--chat"),
    "demo-prompts": (("demo", "--scale", "none", "--prompts", "0"), "--prompts is 0"),
    "demo-many-prompts": (("demo", "--scale", "none", "--prompts", "999"), "999"),
    "demo-scale": (("demo", "--scale", "70b"), "70b"),
    "demo-tokens": (("demo", "--scale", "none", "--max-new-tokens", "1"), "--max-new-tokens is 1"),
    "demo-many-tokens": (("demo", "--scale", "none", "--max-new-tokens", "5000"), "5000"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_document_that_names_it_and_status_2(name: str, bundle: Path) -> None:
    arguments, named = BAD[name]
    result = run(*(part.replace("BUNDLE", str(bundle)) for part in arguments), "--json")
    assert result.exit_code == 2, (result.stdout, result.stderr)
    error = json.loads(result.stdout)["error"]
    assert set(error) == {"type", "message", "hint"}
    assert named in error["message"]
    assert error["type"] in ("UsageError", "CheckpointError")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"prompt": "x"', "not valid JSON"),
        ("[1, 2]", "list"),
        ('{"text": "x"}', "text"),
        ('{"prompt": 3}', "prompt"),
        ('{"prompt_ids": [1, "2"]}', "prompt_ids"),
        ('{"prompt": "x", "prompt_ids": [1]}', "prompt, prompt_ids"),
        ('{"prompt": ""}', "empty"),
        ('{"prompt_ids": [600]}', "600"),
    ],
)
def test_bad_jsonl_is_named_by_its_line(line: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    result = run("generate", "demo", "--batch", str(file), "--json")
    assert result.exit_code == 2
    message = json.loads(result.stdout)["error"]["message"]
    assert f"{file}, line 3: " in message
    assert named in message


def test_a_batch_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    result = run("generate", "demo", "--batch", str(tmp_path / "empty.jsonl"), "--json")
    assert result.exit_code == 2
    assert "holds no prompts" in json.loads(result.stdout)["error"]["message"]


def test_a_draft_with_another_tokenizer_is_refused_before_anything_is_loaded(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of the same length is none of the same tokens."""
    from qspec_decode.commands import plan

    monkeypatch.delattr(plan, "load")
    renamed = tmp_path / "renamed"
    shutil.copytree(bundle / "small", renamed)
    content = json.loads((renamed / "tokenizer.json").read_text())
    first, second, *rest = content["model"]["vocab"].items()
    content["model"]["vocab"] = dict([(first[0], second[1]), (second[0], first[1]), *rest])
    (renamed / "tokenizer.json").write_text(json.dumps(content))
    result = run("generate", "demo", *PROMPT, "--draft", str(renamed), "--json")
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert "'renamed' has another tokenizer than the target" in json.loads(result.stdout)["error"]["message"]


def test_a_draft_without_a_tokenizer_is_known_by_its_length(bundle: Path, tmp_path: Path) -> None:
    for name in ("small", "other"):
        shutil.copytree(bundle / name, tmp_path / name, ignore=shutil.ignore_patterns("tokenizer.json"))
    common = ("generate", "demo", *PROMPT, "--max-new-tokens", "3", "--json", "--draft")
    assert run(*common, str(tmp_path / "small")).exit_code == 0
    refused = run(*common, str(tmp_path / "other"))
    assert refused.exit_code == 2
    assert "'other' has 601 tokens, the target 600" in json.loads(refused.stdout)["error"]["message"]


def test_damaged_checkpoints_are_refused(bundle: Path, tmp_path: Path) -> None:
    for name, damage in {
        "architecture": lambda d: (d / "config.json").write_text('{"model_type": "mamba"}'),
        "shard": lambda d: (d / "model.safetensors").write_bytes(
            (d / "model.safetensors").read_bytes()[:5000]
        ),
        "config": lambda d: (d / "config.json").unlink(),
    }.items():
        directory = tmp_path / name
        directory.mkdir()
        for file in (bundle / "target").iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        damage(directory)
        result = run("generate", str(directory), *PROMPT, "--json")
        assert result.exit_code == 2, name
        assert json.loads(result.stdout)["error"]["type"] == "CheckpointError"


def test_without_json_an_error_is_two_lines_on_stderr() -> None:
    result = run("generate", "demo", *PROMPT, "--top-p", "0.9")
    assert result.exit_code == 2
    assert result.stdout == ""
    error, hint = result.stderr.strip().splitlines()
    assert error.startswith("error: --top-p 0.9")
    assert hint.startswith("hint:  Add --temperature 1")
