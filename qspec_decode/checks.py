"""Numbers that callers hand in: those of Python, numpy and torch are taken, nothing is guessed or rounded."""

import operator
from typing import Any

from qspec_kernels import UsageError


def plain(value: Any) -> Any:
    """Scalars and arrays of numpy and torch as Python numbers and lists; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def as_integer(value: Any) -> int | None:
    """`value` as an int, or None where it is none: floats, texts, truth values."""
    value = plain(value)
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def as_number(value: Any) -> float | None:
    """`value` as a float, or None where it is neither integer nor float, or too large for one."""
    value = plain(value)
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def integer(name: str, value: Any, least: int, hint: str) -> int:
    """`value` as an int of at least `least`.

    Raises
    ------
    UsageError
        When it is none or less, naming the option and its value.
    """
    found = as_integer(value)
    if found is None or found < least:
        raise UsageError(f"{name} is {value!r}; expected an integer, at least {least}", hint)
    return found
