"""The command `qspec` on tiny random checkpoints: documents, errors, exit statuses, interrupts."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qspec_decode import demo
from qspec_decode.commands.generate import generate
from qspec_decode.demo.widen_plan import SCALES, Scale
from tests.decode.command_line import document, run

pytestmark = pytest.mark.usefixtures("bundled")

RUN_FIELDS = {
    "target", "draft", "temperature", "num_tokens", "token_ids", "text", "tokens_per_second",
    "baseline_tokens_per_second", "speedup", "lossless_equal", "reference", "acceptance_rate",
    "mean_acceptance_length", "repeated_8gram_share", "levels", "prefill_seconds", "load_seconds",
}  # fmt: skip
LADDERS = [
    ("bf16", ["mxfp4"]),
    ("bf16", ["mxfp4", "small"]),
    ("bf16", ["mxfp4", "ngram"]),
    ("bf16", ["small"]),
    ("bf16", ["ngram"]),
    ("w4a16", ["w4a8"]),
    ("w4a16", ["w4a4"]),
]


@pytest.fixture(scope="module")
def shown(bundle: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "path", lambda name="target": bundle / name)
        return document(run("demo", "--scale", "none", "--prompts", "2", "--max-new-tokens", "12", "--json"))


def test_the_demo_measures_every_ladder_greedy_and_sampled(shown: dict[str, Any]) -> None:
    assert [(r["target"], r["draft"]) for r in shown["runs"]] == LADDERS * 2
    assert [r["temperature"] for r in shown["runs"]] == [0.0] * 7 + [0.8] * 7
    for r in shown["runs"]:
        assert set(r) >= RUN_FIELDS
        assert r["lossless_equal"] is (None if r["temperature"] else True)
        assert [len(row) for row in r["token_ids"]] == [12, 12]
        assert r["num_tokens"] == 24
        assert len(r["text"]) == 2
        assert len(r["levels"]) == len(r["draft"])
        assert r["tokens_per_second"] > 0
        assert r["baseline_tokens_per_second"] > 0
        assert r["speedup_quartiles"][0] <= r["speedup"] <= r["speedup_quartiles"][1]
        assert r["bound"] > 0
        assert r["reference"] == r["target"]
        assert not r["of_record"]
        assert "2 of the 16 prompts" in r["not_of_record_because"]


def test_the_demo_reports_agreement_and_says_what_its_model_is(shown: dict[str, Any]) -> None:
    pairs = [(a["target"], a["draft"]) for a in shown["agreement"]]
    assert pairs == [("bf16", "mxfp4"), ("bf16", "small"), ("w4a16", "w4a8"), ("w4a16", "w4a4")]
    assert all(0 <= a["top1"] <= 1 and 0 < a["sampled"] <= 1 for a in shown["agreement"])
    assert shown["agreement"][2]["top1"] > 0.8
    assert "6.75M-parameter" in shown["note"]
    assert (shown["scale"], shown["num_prompts"], shown["max_new_tokens"]) == ("none", 2, 12)


def test_the_demo_widens_and_prints_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES, "0.5b", Scale(256, 512, 3))
    result = run("demo", "--prompts", "1", "--max-new-tokens", "4")
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    for target, draft in LADDERS:
        assert result.stdout.count(" <- ".join([target, *draft])) >= 2
    assert "widened to 0.5b" in result.stdout
    assert "NO" not in result.stdout
    assert "def collect_incoming_data" in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stderr == "", "what is being done is said on terminals alone"


def test_generate_compares_with_plain_decoding(bundle: Path) -> None:
    found = document(
        run("generate", str(bundle / "target"), "--prompt", "def f(x):", "--draft", "mxfp4",
            "--draft", "ngram", "-K", "4", "-K", "2", "--max-new-tokens", "16", "--compare", "--json")
    )  # fmt: skip
    assert set(found) >= RUN_FIELDS
    assert found["lossless_equal"] is True
    assert found["baseline_tokens_per_second"] > 0
    assert found["speedup"] == pytest.approx(found["tokens_per_second"] / found["baseline_tokens_per_second"])
    assert found["draft"] == ["mxfp4", "ngram"]
    assert found["num_speculative_tokens"] == [4, 2]
    assert [level["name"] for level in found["levels"]] == ["mxfp4a8", "ngram"]


def test_a_sibling_whose_table_is_padded_to_another_length_drafts(bundle: Path) -> None:
    common = ("--prompt", "def f(x):", "--max-new-tokens", "16", "--compare", "--json")
    padded = document(run("generate", "demo", "--draft", str(bundle / "other"), *common))
    assert padded["lossless_equal"] is True
    assert padded["draft"] == ["other"]
    # the other way round the target is the one that is padded
    shorter = document(run("generate", str(bundle / "other"), "--draft", str(bundle / "small"), *common))
    assert shorter["lossless_equal"] is True
    assert shorter["levels"][0]["num_draft_tokens"] > 0


def test_generate_without_compare_has_null_baseline_fields() -> None:
    found = document(run("generate", "demo", "--prompt-ids", "5,6,7", "--max-new-tokens", "5", "--json"))
    assert [found[k] for k in ("baseline_tokens_per_second", "speedup", "lossless_equal")] == [None] * 3
    assert found["draft"] == ["mxfp4a8"]


def test_a_seed_repeats_a_sampled_run(bundle: Path) -> None:
    def sample(seed: str) -> list[list[int]]:
        return document(
            run("generate", "demo", "--prompt", "import", "--draft", "small", "--temperature", "0.9",
                "--top-k", "50", "--top-p", "0.95", "--seed", seed, "--max-new-tokens", "12", "--json")
        )["token_ids"]  # fmt: skip

    assert sample("1") == sample("1") != sample("2")


def test_a_batch_mixes_texts_and_ids_and_equals_single_prompts(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "class A:"}\n\n{"prompt_ids": [9, 8, 7, 6, 5]}\n')
    common = (
        "--target",
        "w4a16",
        "--draft",
        "w4a8",
        "--group-size",
        "32",
        "--rotate",
        "--quant-lm-head",
        "--max-new-tokens",
        "9",
        "--json",
    )
    together = document(run("generate", "demo", "--batch", str(file), *common))
    alone = [
        document(run("generate", "demo", "--prompt", "class A:", *common)),
        document(run("generate", "demo", "--prompt-ids", "9,8,7,6,5", *common)),
    ]
    assert together["token_ids"] == [single["token_ids"][0] for single in alone]
    assert together["reference"] == "w4a16"


def test_text_goes_to_stdout_and_the_rest_to_stderr(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("def g():\n")
    arguments = ("generate", "demo", "--prompt-file", str(file), "--max-new-tokens", "8", "--compare")
    result, expected = run(*arguments), document(run(*arguments, "--json"))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == expected["text"][0] + "\n"
    assert "the same text" in result.stderr
    assert "drafts accepted" in result.stderr


def test_a_terminal_shows_that_the_prompt_is_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take a minute before there is anything to stream; then nothing but the text may move."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", shown)
    generate("demo", prompt="def f(x):", max_new_tokens=4)
    before, _, behind = shown.getvalue().partition("def f(x):")
    assert "decoding ..." in before
    assert "draft that stood" in before
    assert "decoding ..." not in behind
    assert "4 tokens" in behind


def test_a_checkpoint_without_a_tokenizer_decodes_ids(bundle: Path, tmp_path: Path) -> None:
    for file in (bundle / "target").iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    arguments = ("generate", str(tmp_path), "--prompt-ids", "1,2", "--max-new-tokens", "4")
    found = document(run(*arguments, "--json"))
    assert found["text"] is None
    assert str(found["token_ids"][0]) in run(*arguments).stdout
    refused = run("generate", str(tmp_path), "--prompt", "x", "--json")
    assert refused.exit_code == 2
    assert "tokenizer.json" in json.loads(refused.stdout)["error"]["message"]


def test_one_precision_is_loaded_if_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from qspec_decode.commands import plan

    asked: list[Any] = []
    real = plan.load
    monkeypatch.setattr(
        plan, "load", lambda path, names, **kw: asked.append((str(path), names)) or real(path, names, **kw)
    )
    document(run("generate", "demo", "--prompt", "x", "--draft", "ngram", "--max-new-tokens", "3", "--json"))
    document(run("generate", "demo", "--prompt", "x", "--draft", "small", "--max-new-tokens", "3", "--json"))
    assert asked == [("demo", ("bf16",)), ("demo", ("bf16",)), ("demo-small", ("bf16",))]


def test_a_bug_is_status_1_and_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from qspec_decode.commands import plan

    def broken(*_: object) -> None:
        raise ZeroDivisionError("one by none")

    monkeypatch.setattr(plan, "plan", broken)
    result = run("generate", "demo", "--prompt", "x", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["type"] == "ZeroDivisionError"
    assert "Traceback" in result.stderr


def qspec(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(root)]).strip(os.pathsep)
    return subprocess.Popen(
        [sys.executable, "-m", "qspec_decode.cli", *arguments],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # as from a terminal: what runs in the background may ignore Ctrl-C, and its children with it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


@pytest.mark.parametrize(
    ("sent", "json_option"), [(signal.SIGINT, []), (signal.SIGTERM, ["--json"])], ids=["Ctrl-C", "kill, json"]
)
def test_an_interrupt_exits_with_130_and_writes_nothing_by_halves(
    bundle: Path, sent: signal.Signals, json_option: list[str]
) -> None:
    process = qspec(
        "generate", str(bundle / "target"), "--prompt-ids", "1,2", "--max-new-tokens", "1000",
        "--temperature", "1", *json_option,
    )  # fmt: skip
    assert process.stderr is not None
    assert "loading" in process.stderr.readline()
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.rstrip().endswith("interrupted")
    assert "Traceback" not in stderr
    if json_option:
        assert json.loads(stdout)["error"]["type"] == "Interrupted"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["demo", "--help"], ["generate", "--help"]], ids=" ".join
)
def test_help_and_version_do_not_wait_for_torch(arguments: list[str]) -> None:
    assert "qspec" in without(arguments, "torch", "numpy", "tokenizers")


def test_decoding_does_not_wait_for_the_compiler_of_torch(bundle: Path) -> None:
    options = ["--max-new-tokens", "4", "--temperature", "1", "--json"]
    out = without(["generate", str(bundle / "target"), "--prompt-ids", "1,2", *options], "torch._dynamo")
    assert json.loads(out)["num_tokens"]


def without(arguments: list[str], *modules: str) -> str:
    """Output of a command that succeeds and imports none of the modules."""
    code = (
        "import sys\nfrom qspec_decode.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as status:\n    assert not status.code\n"
        f"assert not {set(modules)} & set(sys.modules), 'slow imports'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_help_teaches_by_example() -> None:
    bench = [f"bench {name}" for name in ("kernels", "decode", "gpu", "train")]
    for command in ("demo", "generate", "doctor", *bench):
        result = run(*command.split(), "--help")
        assert result.exit_code == 0
        assert f"qspec {command}" in result.stdout.partition("Examples")[2]


def test_the_public_surface_is_there_whatever_was_imported_first() -> None:
    import qspec_decode
    import qspec_decode.generate  # binds the submodule to the package, where the function must stay

    assert callable(qspec_decode.generate)
    assert callable(qspec_decode.load)
    for name in dir(qspec_decode):
        assert getattr(qspec_decode, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        qspec_decode.nonsense  # noqa: B018
