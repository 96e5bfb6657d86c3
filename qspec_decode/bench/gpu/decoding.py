"""The second half of `qspec bench gpu`: decoding, by every ladder, in turns with plain decoding."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qspec_decode.bench.contenders import Contender
from qspec_decode.bench.entrants import rows_of_turn
from qspec_decode.bench.gpu import timing
from qspec_decode.bench.gpu.decode_document import Figures, Texts
from qspec_decode.bench.gpu.decode_plan import Task, tasks
from qspec_decode.bench.gpu.device import Device, free
from qspec_decode.bench.gpu.subject import Decode, Subject
from qspec_decode.bench.gpu.timing import Bandwidth
from qspec_decode.bench.passes import Pass
from qspec_decode.bench.record import MAX_GREEDY_TOKENS, MIN_PROMPTS
from qspec_decode.bench.turns import take_turns
from qspec_decode.output import DecodingOutput
from qspec_kernels import UsageError

MIN_CALLS = 3
# contenders of a task go on after so many calls until all prompts of a figure of record were decoded, or this
SECONDS_OF_TASK = 25.0

PEER = "transformers"


@dataclass
class Decoding:
    """What all tasks share, and what they found: `document`, plain values for JSON that grow.

    Parameters
    ----------
    device
        What is measured.
    open_subject
        Makes the model of a scale.
    say, clock
        Are told of every task; seconds since the beginning.
    """

    device: Device
    open_subject: Callable[[str], Subject]
    say: Callable[[str], None]
    clock: Callable[[], float]
    figures: Figures = field(default_factory=Figures)
    texts: Texts = field(default_factory=Texts)
    failures: list[dict[str, str]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    skipped_peers: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._open: dict[str, Subject] = {}
        self._seconds: dict[str, float] = {}
        self._bandwidth: Bandwidth | None = None
        self.document: dict[str, Any] = {
            "max_new_tokens": MAX_GREEDY_TOKENS,
            "load_seconds": self._seconds,
            "passes": self.figures.passes,
            "runs": self.figures.runs,
            "unequal": self.texts.unequal,
            "failures": self.failures,
            "dropped": self.dropped,
            "skipped_peers": self.skipped_peers,
        }

    def run(
        self,
        scales: Sequence[str],
        batches: Sequence[int],
        until: float,
        added: Callable[[], None] = lambda: None,
    ) -> None:
        """Everything, as long as time is left; what comes too late is listed.

        Parameters
        ----------
        added
            Is called after each task, when what it found is in `document`.
        """
        for task in tasks(scales, batches):
            if self.clock() >= until:
                self._drop(task, "the budget was spent")
                continue
            self.say(f"decoding: {task.what} ...")
            try:
                self._run(task)
            except torch.OutOfMemoryError:
                self._drop(task, "there is not enough memory on the device")
            except UsageError as error:
                self._drop(task, error.message)
            # must not cost what was measured before it; it is reported, and the exit status is 1
            except Exception as error:
                self.failures.append({"what": task.what, "error": f"{type(error).__name__}: {error}"})
            finally:
                self._clear(task.scale)
            added()

    def _run(self, task: Task) -> None:
        subject = self._subject(task.scale)
        if task.kind == "passes":
            self._time_passes(task, subject)
        elif task.kind == "runs":
            decoders = {one: subject.decoder(one, task.graphs) for one in task.contenders}
            self._decode(task, subject, decoders)
        else:
            self._run_peer(task, subject)

    def _subject(self, scale: str) -> Subject:
        """The model of a scale; where there is no memory for two, the other one makes room."""
        if scale in self._open:
            return self._open[scale]
        found = None
        try:
            found = self.open_subject(scale)
        except (torch.OutOfMemoryError, UsageError):
            if not self._open:
                raise
        if found is None:
            # not in the handler, where the error still holds what was allocated
            self._open.clear()
            free(self.device)
            found = self.open_subject(scale)
        self._open[scale] = found
        self._seconds[scale] = found.seconds
        return found

    def _time_passes(self, task: Task, subject: Subject) -> None:
        kinds: dict[Pass, None] = {}
        for other in tasks([task.scale], [task.batch]):
            for one in other.contenders:
                # a step, and the verification of as many drafts as there are
                kinds |= dict.fromkeys(
                    pick for level in subject.steps(one) for pick in (level[:1] + level[-1:])
                )
        self._bandwidth = self._bandwidth or Bandwidth(self.device)
        rows = timing.rows(self.device, subject.passes(list(kinds), task.batch), self._bandwidth)
        self.figures.add_passes(task, list(kinds), rows)

    def _run_peer(self, task: Task, subject: Subject) -> None:
        plain = Contender("bf16")
        decoders: dict[Contender | str, Decode] = {plain: subject.decoder(plain, graphs=True)}
        try:
            decoders[PEER] = peer = subject.peer()
            # compiling and capturing take the first calls
            longest = sorted(subject.prompts, key=len)[-task.batch :]
            for _ in range(2):
                peer(rows_of_turn(longest, task.batch, 0), MAX_GREEDY_TOKENS)
        except torch.OutOfMemoryError:
            raise
        # another version than is known here is no reason not to measure
        except Exception as error:
            reason = f"{task.what}: {type(error).__name__}: {error}".splitlines()[0]
            self.skipped_peers.append({"peer": PEER, "reason": reason})
            return
        self._decode(task, subject, decoders)

    def _decode(self, task: Task, subject: Subject, decoders: "dict[Any, Decode]") -> None:
        """Everyone in turns; text that should be plain decoding's is compared with it, prompt by prompt."""
        everyone = list(decoders)
        for one in everyone:
            decoders[one](rows_of_turn(subject.prompts, task.batch, 0), 3)
        calls: dict[Any, list[DecodingOutput]] = {one: [] for one in everyone}
        for turn, one in self._turns(everyone, task.batch):
            rows = rows_of_turn(subject.prompts, task.batch, turn)
            calls[one].append(decoders[one](rows, MAX_GREEDY_TOKENS))
        ours, count = [one for one in everyone if one != PEER], len(subject.prompts)
        equal = {one: self.texts.compare(task, one, calls[one], count) for one in ours}
        self.figures.add_runs(task, calls, {one: subject.steps(one) for one in ours}, equal, count)

    def _turns(self, everyone: list[Any], batch: int) -> Iterator[tuple[int, Any]]:
        began = self.clock()
        for done, (turn, one) in enumerate(take_turns(everyone, max(MIN_CALLS, -(-MIN_PROMPTS // batch)))):
            is_first = done % len(everyone) == 0
            if is_first and turn >= MIN_CALLS and self.clock() - began > SECONDS_OF_TASK:
                return
            yield turn, one

    def _drop(self, task: Task, reason: str) -> None:
        self.dropped.append({"what": task.what, "reason": reason})

    def _clear(self, scale: str) -> None:
        if scale in self._open:
            self._open[scale].clear()
        free(self.device)
