"""llama.cpp's own speculation as a peer: its server, with a draft model beside the model.

Only the server can draft with another model; the Python package has no such function. It is started on a
free local port, asked over HTTP with ids for prompts, and believed in what it says of its times.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qspec_decode.bench.entrants import peer_output
from qspec_decode.output import DecodingOutput
from qspec_decode.stats import SpecDecodingStats
from qspec_kernels import UsageError

PROGRAM = "llama-server"
VARIABLE = "QSPEC_LLAMA_SERVER"

_LOADING_SECONDS = 300
_ANSWER_SECONDS = 600
_STOPPING_SECONDS = 10
# positions of a sequence beyond its text: a round of drafts may run over the end
_SPARE = 64
# Linux: the signal that a process gets when its parent ends
_PR_SET_PDEATHSIG = 1


def find_server(given: str | None = None) -> str:
    """Where the server is: as given, in the environment variable QSPEC_LLAMA_SERVER, or on PATH.

    Raises
    ------
    UsageError
        If it is nowhere, or what was named is no program.
    """
    named = given or os.environ.get(VARIABLE)
    found = shutil.which(named or PROGRAM)
    if found is None:
        where = f"{PROGRAM} is {named}, which is no program" if named else f"{PROGRAM} is not on PATH"
        raise UsageError(
            where, f"Name it with --llama-server or {VARIABLE}. It is built from llama.cpp's sources."
        )
    return found


class LlamaServer:
    """Greedy decoding of a GGUF file by llama.cpp's server, drafted for by another one.

    Parameters
    ----------
    program
        As `find_server` says.
    model, draft
        GGUF files; what the server says is written beside the first one.
    num_speculative_tokens
        Drafts per round.
    num_threads
        Of the model and of the drafter, which take turns.
    """

    weights = "bf16"

    def __init__(self, program: str, model: Path, draft: Path, num_speculative_tokens: int, num_threads: int):
        self.name = f"llama.cpp <- small, K={num_speculative_tokens}"
        self._command = [program, "--model", str(model), "--model-draft", str(draft)]
        self._command += ["--spec-type", "draft-simple", "--spec-draft-n-max", str(num_speculative_tokens)]
        for option in ("--threads", "--threads-batch", "--threads-draft", "--threads-batch-draft"):
            self._command += [option, str(num_threads)]
        self._command += ["--device", "none", "--spec-draft-device", "none", "--host", "127.0.0.1"]
        self._command += ["--no-cache-prompt", "--cache-ram", "0", "--fit", "off", "--no-ui"]
        self._process: subprocess.Popen[bytes] | None = None
        self._shape = (0, 0)
        self._url = ""
        # a file, because nobody empties a pipe while the server runs
        self._log = model.with_name(f"{PROGRAM}.log")

    def decode(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> DecodingOutput:
        """All prompts in one request; the server decodes them together."""
        self._serve(len(prompts), max(map(len, prompts)) + max_new_tokens)
        request = {
            "prompt": [list(prompt) for prompt in prompts],
            "n_predict": max_new_tokens,
            # the most probable token and nothing else: no penalties, no end of text
            "temperature": 0.0,
            "samplers": ["temperature"],
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
        }
        answers = self._post("/completion", request)
        answers = sorted(answers if isinstance(answers, list) else [answers], key=lambda a: a["index"])
        rows = [answer["tokens"] for answer in answers]
        if [len(row) for row in rows] != [max_new_tokens] * len(prompts):
            raise UsageError(
                f"{PROGRAM} made {[len(row) for row in rows]} tokens instead of {max_new_tokens}"
            )
        times = [answer["timings"] for answer in answers]
        # rows are decoded together, so the slowest one's time is everybody's
        decode_seconds = max(one["predicted_ms"] for one in times) / 1e3
        output = peer_output(rows, self.weights, max(one["prompt_ms"] for one in times) / 1e3, decode_seconds)
        output.levels = [self._drafting(times, max_new_tokens)]
        output.num_target_steps = max(max_new_tokens - 1 - one.get("draft_n_accepted", 0) for one in times)
        return output

    def close(self) -> None:
        """End the server; it is started again when it is needed."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _drafting(self, times: Sequence[dict[str, Any]], max_new_tokens: int) -> SpecDecodingStats:
        drafted = sum(one.get("draft_n", 0) for one in times)
        accepted = sum(one.get("draft_n_accepted", 0) for one in times)
        rounds = len(times) * (max_new_tokens - 1) - accepted
        return SpecDecodingStats("small", rounds, drafted, accepted)

    def _serve(self, num_rows: int, num_positions: int) -> None:
        """Have a server for so many sequences at once; the one there is if it will do."""
        rows, positions = self._shape
        if self._process is not None and rows == num_rows and positions >= num_positions:
            return
        self.close()
        positions = -(-(num_positions + _SPARE) // 256) * 256
        port = _free_port()
        self._url, self._shape = f"http://127.0.0.1:{port}", (num_rows, positions)
        sizes = ["--parallel", str(num_rows), "--ctx-size", str(num_rows * positions), "--port", str(port)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, *sizes],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent(),
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + _LOADING_SECONDS
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                raise UsageError(f"{PROGRAM} ended with status {self._process.returncode}", self._last_line())
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > until:
                    raise UsageError(
                        f"{PROGRAM} is not ready after {_LOADING_SECONDS} s", self._last_line()
                    ) from None
            time.sleep(0.1)

    def _post(self, path: str, content: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self._url + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise UsageError(f"{PROGRAM} refuses a request: {error.read()[:300].decode()}") from error
        except OSError as error:
            raise UsageError(f"{PROGRAM} does not answer: {error}", self._last_line()) from error

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"It last said: {lines[-1]}" if lines else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_with_parent() -> Callable[[], None] | None:
    """What a child calls so that it ends with this process, however that ends; on Linux alone."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
