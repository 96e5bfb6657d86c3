"""Which path an op takes on a device and why, in words."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from qspec_kernels import dispatch, preferences
from qspec_kernels.errors import UsageError


def explain(
    op: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sizes: tuple[int, ...] | None = None,
    phase: str = "decode",
) -> str:
    """One line: the backend that serves an op on a device, why it is asked first or those before it do not.

    `isa()` and this are what `qspec doctor` prints.

    Parameters
    ----------
    op
        Such as "attention", or "linear_w4a8": linears are named after their precision.
    dtype
        What is computed in.
    sizes
        Those of a call, where the choice depends on them: for hadamard_quantize_act the width of a row and
        the order of the base matrix. None for a call of any sizes; the line then ends with what small ones
        get.
    phase
        "decode", or "prefill" for prompts, which some linears have a kernel of their own for: the line is
        then about `<op>_prefill`, and where none serves, about `op`, and ends with why not.

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
    asked = (torch.device(device), dtype)
    choice = dispatch.choose(op, *asked, phase=phase, sizes=sizes)
    if choice.backend is None:
        return f"{choice.name} on {device}: none; " + "; ".join(choice.refusals)
    rest = [f"not {reason}" for reason in choice.refusals]
    if sizes is None:
        rest += _by_size(choice, *asked)
    if phase == "prefill" and choice.name == op:
        refusals = dispatch.choose(f"{op}_prefill", *asked, sizes=sizes).refusals
        known = (*choice.refusals, dispatch.NO_KERNEL)
        rest += [f"not {op}_prefill of {reason}" for reason in refusals if not reason.endswith(known)]
    line = f"{choice.name} on {device}: {_compiled_for(choice)}{_because(choice, sizes)}"
    return "; ".join((line, *rest))


def _compiled_for(choice: dispatch.Choice) -> str:
    """A backend, and what its kernels have been compiled for: "triton (sm_90)"."""
    if choice.backend == "cpp":
        return f"cpp ({dispatch.isa()})"
    if choice.backend == "torch" or choice.capability is None:
        return str(choice.backend)
    return "{} (sm_{}{})".format(choice.backend, *choice.capability)


def _because(choice: dispatch.Choice, sizes: tuple[int, ...] | None) -> str:
    """What the table says for the backend that it asks first; what it has was counted for NVIDIA's GPUs."""
    row = preferences.row(choice.name, choice.capability, sizes) if choice.capability else None
    return f", because {row.why}" if row and row.backends[0] == choice.backend else ""


def _by_size(choice: dispatch.Choice, device: torch.device, dtype: torch.dtype) -> Iterator[str]:
    """What calls get that are small enough for a row of the table, if sizes are not known; refusals once."""
    for row in preferences.rows_by_size(choice.name, choice.capability) if choice.capability else ():
        first = row.backends[0]
        reason = dispatch.refusal(first, choice.name, device, dtype, None)
        if f"{first}: {reason}" not in choice.refusals:
            what = f"not {first}: {reason}" if reason else f"{first} first, because {row.why}"
            yield f"for sizes up to {row.largest} {what}"


@cache
def ops() -> tuple[str, ...]:
    """Every op that there is: the torch backend has a file for each."""
    folder = Path(__file__).parent / "backends" / "torch"
    return tuple(sorted(path.stem for path in folder.glob("[a-z]*.py")))
