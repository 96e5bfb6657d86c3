"""Names of precisions: which weights a linear reads and what its input is rounded to."""

from dataclasses import dataclass

from qspec_kernels.errors import UsageError


@dataclass(frozen=True)
class Precision:
    """What a linear of a named precision computes with.

    Parameters
    ----------
    weights
        Format of the weight: "fp32", "bf16", or a canonical format of `qspec_kernels.formats`.
    act
        The `act` argument of `linear` ("a16", "a8", "a4"); None for a dense weight.
    """

    weights: str
    act: str | None


PRECISIONS = {
    "fp32": Precision("fp32", None),
    "bf16": Precision("bf16", None),
    "w4a16": Precision("int4", "a16"),
    "w4a8": Precision("int4", "a8"),
    "w4a4": Precision("int4", "a4"),
    "mxfp4a16": Precision("mxfp4", "a16"),
    "mxfp4a8": Precision("mxfp4", "a8"),
}
"""Every precision by its name."""


def precision(name: str) -> Precision:
    """The precision of that name.

    Raises
    ------
    UsageError
        If there is none; lists those there are.
    """
    if name not in PRECISIONS:
        raise UsageError(f"unknown precision {name!r}", f"There are: {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]
