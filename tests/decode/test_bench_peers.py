"""Other programs as contenders: transformers itself, and llama.cpp's Python package played by a stand-in."""

import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from qspec_decode.bench import peers
from qspec_decode.bench.contenders import Contender
from qspec_decode.bench.entrants import Entrant, Ours
from qspec_decode.bench.llama_cpp_peer import LlamaCpp
from qspec_decode.load import load
from qspec_kernels import UsageError
from tests.decode.stand_in_llama import FakeLlama, said_after

PROMPTS = [list(range(40, 70)), list(range(300, 280, -1)), [7]]


def test_transformers_decodes_ragged_rows_as_it_does_each_alone(bundle: Path) -> None:
    peer = peers.Transformers(bundle / "target")
    assert isinstance(peer, Entrant)
    # in bf16 its own sums depend on the batch
    peer._model.float()
    together = peer.decode(PROMPTS, 8)
    assert together.token_ids == [peer.decode([prompt], 8).token_ids[0] for prompt in PROMPTS]
    assert [len(row) for row in together.token_ids] == [8, 8, 8]
    ours = Ours(Contender("fp32"), load(bundle / "target", ("fp32",)))
    assert together.token_ids == ours.decode(PROMPTS, 8).token_ids
    assert together.prefill_seconds > 0
    assert together.decode_seconds > 0
    assert together.num_target_steps == 7
    assert together.tokens_per_second == 21 / together.decode_seconds


def test_transformers_decodes_greedily_and_to_the_end(bundle: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(bundle / "target", directory)
    ends_everything = {"eos_token_id": list(range(600)), "do_sample": True, "temperature": 5.0}
    (directory / "generation_config.json").write_text(json.dumps(ends_everything))
    found = peers.Transformers(directory).decode(PROMPTS[:1], 5).token_ids
    assert found == peers.Transformers(bundle / "target").decode(PROMPTS[:1], 5).token_ids
    assert len(found[0]) == 5


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> FakeLlama:
    fake = FakeLlama()
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    return fake


def test_llama_cpp_decodes_one_sequence_per_prompt(llama: FakeLlama) -> None:
    peer = LlamaCpp(Path("model.gguf"), "q4_0", 2)
    assert isinstance(peer, Entrant)
    out = peer.decode(PROMPTS, 6)
    for prompt, row in zip(PROMPTS, out.token_ids, strict=True):
        text = list(prompt)
        for token in row:
            assert token == said_after(text)
            text.append(token)
        assert len(row) == 6
    assert (out.reference, out.num_target_steps) == ("q4_0", 5)
    params = llama.contexts[0].params
    assert (params.n_threads, params.n_threads_batch, params.n_seq_max) == (2, 2, 3)
    # what all sequences share is divided, and each must hold its text
    assert params.n_ctx // 3 >= 36
    assert sorted(llama.freed) == ["batch", "context"]


def test_llama_cpp_says_what_it_cannot_do(llama: FakeLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"cannot load missing\.gguf"):
        LlamaCpp(Path("missing.gguf"), "bf16", 1)
    peer = LlamaCpp(Path("model.gguf"), "bf16", 1)
    monkeypatch.setattr(FakeLlama, "llama_decode", lambda *_: 1)
    with pytest.raises(UsageError, match="30 tokens with status 1"):
        peer.decode(PROMPTS[:1], 2)
    assert sorted(llama.freed) == ["batch", "context"]


def test_peers_that_are_not_installed_are_named_and_asked_for_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    weights = peers.Weights(lambda: tmp_path, lambda: None, tmp_path)
    ready, skipped = peers.open_peers(None, weights, None, ExitStack(), lambda _: None)
    assert ready == []
    assert [one["peer"] for one in skipped] == ["transformers", "llama.cpp", "llama-server"]
    assert "cannot run without llama_cpp and gguf" in skipped[1]["reason"]
    assert "qspec[bench]" in skipped[1]["reason"]
    with pytest.raises(UsageError, match="cannot run without transformers"):
        peers.open_peers(["transformers"], weights, None, ExitStack(), lambda _: None)
