"""What `qspec bench gpu` is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from qspec_decode.bench import shapes
from qspec_decode.bench.gpu import cases
from qspec_decode.demo.widen import SCALES
from qspec_kernels import UsageError

SHAPES = ("llama-3-8b", "llama-3-70b")
ROWS = (1, 2, 4, 5, 8, 16, 32, 64, 128, 512, 4096)
BUDGET = 420.0
DECODED = ("8b", "1b")
"""Scales of the demo model that decode unless others are named."""
BATCHES = (1, 4, 16, 32, 64, 128)
_KEYS, _BATCH = 4096, 32
# of the budget, compiling included
_SHARE_OF_CHECKS = 0.4
# of what is left then, while there is something to decode; what is left at the end is the kernels' again
_SHARE_OF_KERNELS = 0.45


@dataclass(frozen=True)
class Request:
    """What to check and to time.

    Parameters
    ----------
    ops
        Of `cases.OPS`; "linear" stands for all linears.
    shapes
        Names as `shapes.choose` takes them; timed only.
    rows
        M, the rows of the input; timed only.
    budget
        Seconds for everything: 40 % for checks; of the rest 45 % for kernels, before anything decodes. What
        has begun when they are over is finished.
    keys, batch
        Of the cache that attention is timed on.
    scales
        Sizes of the demo model that decode, or "none" as it is bundled; empty for kernels alone.
    batches
        Sequences that are decoded at once.

    Raises
    ------
    UsageError
        For an op, shape or scale that is unknown, and for numbers that are not positive.
    """

    ops: Sequence[str] = cases.OPS
    shapes: Sequence[str] = SHAPES
    rows: Sequence[int] = ROWS
    budget: float = BUDGET
    keys: int = _KEYS
    batch: int = _BATCH
    scales: Sequence[str] = ()
    batches: Sequence[int] = BATCHES

    def __post_init__(self) -> None:
        shapes.choose(self.shapes)
        unknown = [op for op in self.ops if op not in (*cases.OPS, "linear")]
        if unknown or not self.ops:
            named = repr(unknown[0]) if unknown else "''"
            raise UsageError(f"unknown op {named}", f"There are: linear, {', '.join(cases.OPS)}.")
        for name, values in (("m", self.rows), ("batch", self.batches)):
            if not values or min(values) < 1:
                raise UsageError(f"{name} is {list(values)}; expected numbers of at least 1")
        if not self.budget > 0:
            raise UsageError(f"budget is {self.budget}; expected more than 0 seconds")
        for scale in self.scales:
            if scale not in (*SCALES, "none"):
                raise UsageError(f"unknown scale {scale!r}", f"There are: none, {', '.join(SCALES)}.")

    @property
    def names(self) -> list[str]:
        """Every op that is meant, once."""
        linears = [op for op in cases.OPS if op.startswith("linear_")]
        return list(
            dict.fromkeys(op for name in self.ops for op in (linears if name == "linear" else [name]))
        )

    @property
    def check_seconds(self) -> float:
        """After so many no check begins that can be left out."""
        return self.budget * _SHARE_OF_CHECKS

    def kernels_until(self, passed: float) -> float:
        """After so many seconds decoding begins, when so many have passed before kernels are timed."""
        return passed + (self.budget - passed) * (_SHARE_OF_KERNELS if self.scales else 1.0)
