"""Before any kernel: do matrix instructions lay out their operands as the CUDA kernels take for granted?

Where they do not, those kernels are wrong all at once, and none of their results says why.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from qspec_decode.bench.gpu import backends
from qspec_decode.bench.gpu.correctness import Verdict
from qspec_decode.bench.gpu.device import Device

KIND = "fragments"


def check(device: Device, say: Callable[[str], None]) -> tuple[list[Verdict], dict[str, Any]]:
    """Ask the device about every instruction that the CUDA kernels use on it.

    Returns
    -------
    A verdict for each, of `m` elements asked one by one and as many wrong answers as `error` says; and what
    the document tells: why nothing was asked (`skipped`), or of each instruction the `layout` that it has, or
    where it has another, a `map` of all answers.
    """
    if reason := backends.lacking(device, "cuda"):
        return [], {"skipped": reason}
    say("checking fragments of matrix instructions ...")
    probe, verdicts, told = backends.fragments(), [], {}
    for name in probe.instructions(device.capability):
        assumed = probe.assumed(name)
        failed, error, bound = "", None, None
        try:
            answers = probe.asked(name, device.device)
            error, bound = float((answers != assumed).sum()), 0.0
            failed = KIND if error else ""
            told[name] = {"map": _map(answers)} if error else {"layout": probe.layout(name)}
        except Exception as raised:  # whatever a launch raises belongs into the table
            failed = f"{type(raised).__name__}: {raised}".splitlines()[0]
        verdicts.append(Verdict(KIND, "cuda", name, len(assumed), failed, error, bound, (KIND,)))
    return verdicts, told


def _map(answers: Tensor) -> list[list[int]]:
    """[row, column, answer] of every answer that is not zero."""
    return [[row, column, int(answers[row, column])] for row, column in answers.nonzero().tolist()]
