"""A stand-in for the part of `llama_cpp` that is called, in this process or as a module for another one."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VOCAB = 50

MODULE = """
import os, resource, signal, sys, time
from tests.decode.stand_in_llama import FakeLlama
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
{change}
sys.modules[__name__] = FakeLlama()
"""


def write_module(directory: Path, change: str = "") -> None:
    """A module `llama_cpp` for processes that have the directory on their path.

    `change` is run when it is imported, and may change `FakeLlama`.
    """
    (directory / "llama_cpp.py").write_text(MODULE.format(change=change))


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
