"""Other programs as contenders: transformers itself, and llama.cpp's Python package played by a stand-in."""

import ctypes
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qspec_decode.bench import peers
from qspec_decode.bench.contenders import Contender
from qspec_decode.bench.entrants import Entrant, Ours
from qspec_decode.bench.llama_cpp_peer import LlamaCpp
from qspec_decode.load import load
from qspec_kernels import UsageError

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


VOCAB = 50


class FakeLlama:
    """The part of `llama_cpp` that is called. The next token is a function of a row's whole text."""

    def __init__(self) -> None:
        self.freed: list[str] = []
        self.contexts: list[SimpleNamespace] = []
        self.callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self.llama_log_callback = self.callback

    def llama_log_set(self, callback: Any, data: Any) -> None:
        assert isinstance(callback, self.callback)

    def llama_backend_init(self) -> None:
        pass

    def llama_model_default_params(self) -> SimpleNamespace:
        return SimpleNamespace()

    def llama_model_load_from_file(self, path: bytes, params: SimpleNamespace) -> str | None:
        assert params.n_gpu_layers == 0
        return None if path.endswith(b"missing.gguf") else "model"

    def llama_model_get_vocab(self, model: str) -> str:
        return "vocab"

    def llama_vocab_n_tokens(self, vocab: str) -> int:
        return VOCAB

    def llama_context_default_params(self) -> SimpleNamespace:
        return SimpleNamespace(n_ctx=512, n_batch=2048, n_seq_max=1)

    def llama_init_from_model(self, model: str, params: SimpleNamespace) -> SimpleNamespace:
        texts: dict[int, list[int]] = {row: [] for row in range(params.n_seq_max)}
        self.contexts.append(SimpleNamespace(params=params, texts=texts, logits={}))
        return self.contexts[-1]

    def llama_batch_init(self, n_tokens: int, embd: int, n_seq_max: int) -> SimpleNamespace:
        assert (embd, n_seq_max) == (0, 1)
        batch = {name: [None] * n_tokens for name in ("token", "pos", "logits", "n_seq_id")}
        return SimpleNamespace(n_tokens=0, seq_id=[[None] for _ in range(n_tokens)], **batch)

    def llama_decode(self, context: SimpleNamespace, batch: SimpleNamespace) -> int:
        assert batch.n_tokens <= context.params.n_batch
        context.logits = {}
        for i in range(batch.n_tokens):
            assert batch.n_seq_id[i] == 1
            text = context.texts[batch.seq_id[i][0]]
            assert batch.pos[i] == len(text), "positions follow one another"
            text.append(batch.token[i])
            if batch.logits[i]:
                context.logits[i] = said_after(text)
        return 0

    def llama_get_logits_ith(self, context: SimpleNamespace, index: int) -> Any:
        array = (ctypes.c_float * VOCAB)()
        # of two that are equal the first counts
        array[context.logits[index]] = array[VOCAB - 1] = 2.0
        return ctypes.cast(array, ctypes.POINTER(ctypes.c_float))

    def llama_batch_free(self, batch: SimpleNamespace) -> None:
        self.freed.append("batch")

    def llama_free(self, context: SimpleNamespace) -> None:
        self.freed.append("context")


def said_after(text: Sequence[int]) -> int:
    return sum((i + 1) * token for i, token in enumerate(text)) % (VOCAB - 1)


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


def test_llama_cpp_gets_the_same_weights_twice(
    llama: FakeLlama, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
    weights = peers.Weights(lambda: bundle / "target", lambda: None, tmp_path)
    ready, skipped = peers.open_peers(["llama.cpp"], weights, None, ExitStack(), lambda _: None)
    assert [(one.name, one.weights) for one in ready] == [("llama.cpp", "bf16"), ("llama.cpp", "q4_0")]
    assert skipped == []
    for kind in ("bf16", "q4_0"):
        assert gguf.GGUFReader(tmp_path / f"{kind}.gguf").fields["llama.block_count"].contents() == 2


def test_llama_cpp_and_transformers_do_not_share_a_process_with_tiles(
    llama: FakeLlama, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
    weights = peers.Weights(lambda: bundle / "target", lambda: None, tmp_path)
    both = ["transformers", "llama.cpp"]
    monkeypatch.setattr(peers, "cpu_field", lambda name: "avx2")
    assert len(peers.open_peers(both, weights, None, ExitStack(), lambda _: None)[0]) == 3
    monkeypatch.setattr(peers, "cpu_field", lambda name: "avx2 amx_tile")
    with pytest.raises(UsageError, match="beside transformers on a processor with AMX"):
        peers.open_peers(both, weights, None, ExitStack(), lambda _: None)
    assert len(peers.open_peers(both[1:], weights, None, ExitStack(), lambda _: None)[0]) == 2


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
