"""Names of precisions, and which weight set serves each."""

from collections.abc import Iterable

from qspec_kernels import PRECISIONS, UsageError

# mxfp4a8 agrees with its target as often as mxfp4a16, and is the faster of the two
ALIASES = {"mxfp4": "mxfp4a8"}


def canonical(name: str) -> str:
    """The precision that a name stands for: itself, or what an alias such as "mxfp4" resolves to.

    Raises
    ------
    UsageError
        For a name that is neither.
    """
    resolved = ALIASES.get(name, name)
    if resolved not in PRECISIONS:
        raise UsageError(
            f"unknown precision {name!r}, expected one of {', '.join([*PRECISIONS, *ALIASES])}",
        )
    return resolved


def set_name(precision: str) -> str:
    """The weight set that serves a precision: "fp32", "bf16", "int4" or "mxfp4"."""
    return PRECISIONS[canonical(precision)].weights


def served_by(sets: Iterable[str]) -> tuple[str, ...]:
    """Every precision that the named weight sets serve, in the order of `PRECISIONS`."""
    held = set(sets)
    return tuple(name for name, precision in PRECISIONS.items() if precision.weights in held)
