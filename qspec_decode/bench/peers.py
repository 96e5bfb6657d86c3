"""Other programs that decode the same weights: transformers, llama.cpp, and llama.cpp's own speculation.

They use as many threads as the kernels here, get prompts as ids, and are timed from the first new token on.
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qspec_decode.bench.contenders import Contender
from qspec_decode.bench.entrants import Entrant, peer_output
from qspec_decode.bench.llama_cpp_process import LlamaCppProcess
from qspec_decode.bench.llama_server_peer import PROGRAM, LlamaServer, find_server
from qspec_decode.output import DecodingOutput
from qspec_kernels import QSpecError, UsageError, num_threads

_NEEDS = {
    "transformers": (("transformers",), "Install it: pip install 'qspec[hf]'."),
    "llama.cpp": (("llama_cpp", "gguf"), "Install them: pip install 'qspec[bench]'."),
    PROGRAM: (("gguf",), "Install it: pip install gguf."),
}
NAMES = tuple(_NEEDS)


class Transformers:
    """transformers' own `generate`, in bf16, on a checkpoint directory."""

    name = "transformers"
    weights = "bf16"

    def __init__(self, directory: Path):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        # nothing of the checkpoint's own settings: no end of text, no sampling
        model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
        self._model: Any = model.eval()

    def decode(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> DecodingOutput:
        """Prompts of several lengths are padded on the left, as its documentation asks."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        clock = _Clock()
        began = time.perf_counter()
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, streamer=clock
            )
        # the prompt is put first, then every new token of all rows at once
        first, last = clock.times[1], clock.times[-1]
        return peer_output(found[:, width:].tolist(), "bf16", first - began, last - first)


class _Clock:
    """A streamer that keeps the times."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Weights:
    """The weights that everyone decodes, for those who read them from files.

    Parameters
    ----------
    checkpoint, small
        Give the directories of the model and of its sibling, written when they are first needed; the
        sibling's is None where there is none.
    scratch
        Where GGUF files are written.
    """

    checkpoint: Callable[[], Path]
    small: Callable[[], Path | None]
    scratch: Path

    def gguf(self, kind: str) -> Path:
        """The model as "bf16" or "q4_0"."""
        return self._written(self.checkpoint(), kind, kind)

    def small_gguf(self) -> Path:
        """The sibling in bf16.

        Raises
        ------
        UsageError
            If there is none.
        """
        directory = self.small()
        if directory is None:
            raise UsageError(f"{PROGRAM} drafts with the demo's sibling, and another model was named")
        return self._written(directory, "small", "bf16")

    def _written(self, directory: Path, name: str, kind: str) -> Path:
        from qspec_decode.bench.gguf_file import write_gguf

        path = self.scratch / f"{name}.gguf"
        return path if path.exists() else write_gguf(directory, path, kind)


def open_peers(
    names: Sequence[str] | None,
    weights: Weights,
    server: str | None,
    closing: ExitStack,
    say: Callable[[str], None],
) -> tuple[list[Entrant], list[dict[str, str]]]:
    """(peers that are ready, {"peer", "reason"} of those that are not).

    Parameters
    ----------
    names
        Peers that must run; None for those that can.
    server
        Where llama.cpp's server is, if that was said.
    closing
        Ends what was started.

    Raises
    ------
    UsageError
        A name of no peer, or one that was asked for and cannot run.
    """
    peers: list[Entrant] = []
    skipped = []
    for name in NAMES if names is None else names:
        try:
            _check_installed(name, server)
            say(f"preparing {name} ...")
            peers += _open(name, weights, server, closing)
        except QSpecError as error:
            if names is not None:
                raise
            skipped.append({"peer": name, "reason": f"{error.message}. {error.hint}".strip()})
    return peers, skipped


def check_names(names: Sequence[str] | None, server: str | None) -> None:
    """Raise a `UsageError` for peers that there are not or that are not installed."""
    for name in names or ():
        if name not in _NEEDS:
            *others, last = NAMES
            raise UsageError(f"--peers has {name!r}, expected {', '.join(others)} or {last}")
        _check_installed(name, server)
    if server is not None:
        find_server(server)


def _check_installed(name: str, server: str | None) -> None:
    modules, hint = _NEEDS[name]
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"{name} cannot run without {' and '.join(missing)}, not installed here", hint)
    if name == PROGRAM:
        find_server(server)


def _open(name: str, weights: Weights, server: str | None, closing: ExitStack) -> list[Entrant]:
    if name == "transformers":
        return [Transformers(weights.checkpoint())]
    if name == PROGRAM:
        program = find_server(server)
        (k,) = Contender("bf16", ("small",)).num_speculative_tokens
        draft = weights.small_gguf()
        peer = LlamaServer(program, weights.gguf("bf16"), draft, k, num_threads())
        closing.callback(peer.close)
        return [peer]
    # if the second one cannot run the first one ends, too
    with ExitStack() as opened:
        found: list[Entrant] = []
        for kind in ("bf16", "q4_0"):
            one = LlamaCppProcess(weights.gguf(kind), kind, num_threads())
            opened.callback(one.close)
            found.append(one)
        closing.enter_context(opened.pop_all())
    return found
