"""llama.cpp in a process of its own: there nothing else touches what it keeps, and its death is only its own.

It configures the matrix tiles (AMX) of a thread once for all time, and oneDNN, which multiplies for
transformers, gives them up; in one thread llama.cpp would end in an illegal instruction.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

from qspec_decode.bench.entrants import peer_output
from qspec_decode.bench.llama_cpp_peer import LlamaCpp
from qspec_decode.bench.llama_server_peer import end_with_parent
from qspec_decode.output import DecodingOutput
from qspec_kernels import UsageError

# so many tokens at once are multiplied in tiles, one alone is not
_TRIAL = list(range(32))
_LEAVE_OUT = "leave it out: --peers transformers."
_REBUILD = (
    "For a processor with AMX, GCC 12 must build it with -fno-tree-dse -fno-dse, as the how-to guide Measure "
    f"decoding says. Or {_LEAVE_OUT}"
)


class LlamaCppProcess:
    """`LlamaCpp` in a process that waits for prompts, and ends with this one.

    It measures its times itself. Creating one decodes a few tokens, so that a broken build is found at once.

    Raises
    ------
    UsageError
        If llama.cpp cannot load the file, or ends.
    """

    name = LlamaCpp.name

    def __init__(self, path: Path, weights: str, num_threads: int):
        self.weights = weights
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, path, weights, num_threads), daemon=True)
        with theirs, _interrupts_blocked():
            self._process.start()
        try:
            self.decode([_TRIAL], 2)
        except BaseException:
            self.close()
            raise

    def decode(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> DecodingOutput:
        """As `LlamaCpp` decodes.

        Raises
        ------
        UsageError
            What llama.cpp cannot do, or the signal or status that it ended with.
        """
        try:
            self._connection.send(([list(prompt) for prompt in prompts], max_new_tokens))
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None
        if "error" in answer:
            raise UsageError(answer["error"], answer["hint"])
        return peer_output(
            answer["token_ids"], self.weights, answer["prefill_seconds"], answer["decode_seconds"]
        )

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _ended(self) -> UsageError:
        self._process.join()
        status = self._process.exitcode or 0
        if status >= 0:
            return UsageError(f"llama.cpp ended with status {status}", _LEAVE_OUT.capitalize())
        ended_by = signal.Signals(-status)
        is_broken = ended_by in (signal.SIGILL, signal.SIGSEGV)
        return UsageError(
            f"llama.cpp ended with signal {ended_by.name}", _REBUILD if is_broken else _LEAVE_OUT.capitalize()
        )


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process started in here never sees Ctrl-C, which goes to all processes of a terminal at once."""
    # multiprocessing starts this one along with the first process, and unblocks them then
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, path: Path, weights: str, num_threads: int) -> None:
    """What the process does: answer requests until nobody is left to ask."""
    end = end_with_parent()
    if end is not None:
        end()
    peer: LlamaCpp | None = None
    with suppress(EOFError, ConnectionError):
        while True:
            prompts, max_new_tokens = connection.recv()
            try:
                peer = peer or LlamaCpp(path, weights, num_threads)
                out = peer.decode(prompts, max_new_tokens)
            except UsageError as error:
                connection.send({"error": error.message, "hint": error.hint})
            else:
                connection.send(
                    {
                        "token_ids": out.token_ids,
                        "prefill_seconds": out.prefill_seconds,
                        "decode_seconds": out.decode_seconds,
                    }
                )
