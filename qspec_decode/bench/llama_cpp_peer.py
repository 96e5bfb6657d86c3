"""llama.cpp as a peer, through the C functions that `llama-cpp-python` gives Python.

Its class `Llama` decodes one sequence; a batch takes a context with several. The greedy choice is an argmax
over the logits where they lie, for one row as for many.
"""

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qspec_decode.bench.entrants import peer_output
from qspec_decode.output import DecodingOutput
from qspec_kernels import UsageError


class LlamaCpp:
    """Plain greedy decoding of a GGUF file on the CPU."""

    name = "llama.cpp"

    def __init__(self, path: Path, weights: str, num_threads: int):
        # not imported by a statement: few machines have it, and checks of types would miss it
        llama_cpp: Any = importlib.import_module("llama_cpp")
        self.weights = weights
        self._api = llama_cpp
        self._num_threads = num_threads
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise UsageError(f"llama.cpp cannot load {path}", "Its own tools say why: llama-cli -m FILE.")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def decode(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> DecodingOutput:
        """One sequence per prompt; every step decodes a token of each of them."""
        run = _Run(
            self._api, self._model, len(prompts), self._num_threads, _capacity(prompts, max_new_tokens)
        )
        try:
            began = time.perf_counter()
            entries = [
                (token, position, row, position == len(prompt) - 1)
                for row, prompt in enumerate(prompts)
                for position, token in enumerate(prompt)
            ]
            tokens = run.step(entries, self._vocab_size)
            rows = [[token] for token in tokens]
            first = time.perf_counter()
            for step in range(max_new_tokens - 1):
                entries = [
                    (token, len(prompt) + step, row, True)
                    for row, (prompt, token) in enumerate(zip(prompts, tokens, strict=True))
                ]
                tokens = run.step(entries, self._vocab_size)
                for row, token in zip(rows, tokens, strict=True):
                    row.append(token)
            ended = time.perf_counter()
        finally:
            run.close()
        return peer_output(rows, self.weights, first - began, ended - first)


def _capacity(prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    # llama.cpp rounds up to 256 itself, after dividing what all sequences get
    return -(-(max(map(len, prompts)) + max_new_tokens) // 256) * 256


class _Run:
    """A context of so many sequences, and the batch that its calls are described in."""

    def __init__(self, api: Any, model: Any, num_rows: int, num_threads: int, capacity: int):
        self._api = api
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = num_rows * capacity
        params.n_seq_max = num_rows
        params.n_threads = params.n_threads_batch = num_threads
        self._context = api.llama_init_from_model(model, params)
        if not self._context:
            raise UsageError(f"llama.cpp makes no context of {num_rows} sequences x {capacity} positions")
        self._batch = api.llama_batch_init(num_rows * capacity, 0, 1)

    def step(self, entries: Sequence[tuple[int, int, int, bool]], vocab_size: int) -> list[int]:
        """Decode (token, position, row, whether its logits are wanted); the most probable tokens of those."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, row, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = row
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise UsageError(f"llama.cpp decodes {len(entries)} tokens with status {status}")
        wanted_at = [i for i, entry in enumerate(entries) if entry[3]]
        return [self._most_probable(i, vocab_size) for i in wanted_at]

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)

    def _most_probable(self, index: int, vocab_size: int) -> int:
        pointer = self._api.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(pointer, shape=(vocab_size,)).argmax())
