"""Which path an op takes on a device and why, in words."""

from functools import cache
from pathlib import Path

import torch

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError


def explain(
    op: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sizes: tuple[int, ...] | None = None,
    phase: str = "decode",
) -> str:
    """One line: the backend that serves an op on a device, and why the ones before it do not.

    `isa()` and this are what `qspec doctor` prints.

    Parameters
    ----------
    op
        Such as "attention", or "linear_w4a8": linears are named after their precision.
    dtype
        What is computed in.
    sizes
        Those of a call that may be too large for a backend: for hadamard_quantize_act the width of a row and
        the order of the base matrix.
    phase
        "decode", or "prefill" for prompts, which some linears have a kernel of their own for: the line is
        then about `<op>_prefill`, and where none serves, about `op` as ever.

    Raises
    ------
    UsageError
        If there is no such op or phase, or QSPEC_CPU_ISA asks for a library that does not exist or needs
        flags the CPU lacks.
    """
    if op not in ops():
        raise UsageError(
            f"op is {op!r}; expected one of {', '.join(ops())}",
            "Linears are named after their precision, as 'linear_w4a16' is; prompts are phase='prefill'.",
        )
    if phase not in dispatch.PHASES:
        expected = ", ".join(dispatch.PHASES)
        raise UsageError(f"phase is {phase!r}; expected one of {expected}", "Choose one of those.")
    choice = dispatch.choose(op, torch.device(device), dtype, phase=phase, sizes=sizes)
    if choice.backend is None:
        return f"{choice.name} on {device}: none; " + "; ".join(choice.refusals)
    chosen = dispatch.compiled_for(choice.backend, torch.device(device))
    return f"{choice.name} on {device}: {chosen}" + "".join(f"; not {reason}" for reason in choice.refusals)


@cache
def ops() -> tuple[str, ...]:
    """Every op that there is: the torch backend has a file for each."""
    folder = Path(__file__).parent / "backends" / "torch"
    return tuple(sorted(path.stem for path in folder.glob("[a-z]*.py")))
