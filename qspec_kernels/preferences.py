"""Which backend of a GPU is asked first for an op: a pure function over a small table.

What a backend cannot run it refuses by itself, with `why_not` in the op's file, and the next one is asked.
The table says which is better of those that can. What it has is by instructions and bytes counted in machine
code, none of it timed. A row that measurements ask for goes before those that it corrects.

A row never knows the number of tokens: a token's numbers must not depend on its company.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """An order of backends, and the calls that it is for.

    Parameters
    ----------
    ops
        Names of files: "linear_w4a16", and "linear_w4a16_prefill" for prompts.
    backends
        All that a GPU has, the best first.
    least, most
        Compute capabilities, both included.
    largest
        The most of each of the call's sizes (see `dispatch.find`), included; such a row holds for no call
        whose sizes are unknown. None for any sizes.
    """

    ops: tuple[str, ...]
    backends: tuple[str, ...]
    least: tuple[int, int] = (0, 0)
    most: tuple[int, int] = (99, 9)
    largest: tuple[int, ...] | None = None

    def holds(self, op: str, capability: tuple[int, int] | None, sizes: tuple[int, ...] | None) -> bool:
        """Whether the row is for a call; without a capability, of a GPU that has none, any is within."""
        if op not in self.ops or (capability is not None and not self.least <= capability <= self.most):
            return False
        if self.largest is None:
            return True
        return sizes is not None and all(size <= most for size, most in zip(sizes, self.largest, strict=True))


TABLE = (
    Row(
        (
            *("linear_w4a16", "linear_w4a8", "linear_w4a4", "linear_mxfp4a16", "linear_mxfp4a8"),
            "hadamard_quantize_act",
        ),
        ("cuda", "triton", "torch"),
    ),
)
# of all other ops
DEFAULT = ("triton", "cuda", "torch")


def backends(
    op: str, capability: tuple[int, int] | None = None, sizes: tuple[int, ...] | None = None
) -> tuple[str, ...]:
    """Backends of a GPU in the order in which they are asked: that of the first row which holds.

    Parameters
    ----------
    capability
        Of the GPU; None where it is not NVIDIA's.
    sizes
        Of the call, as in `dispatch.find`.
    """
    rows = (row.backends for row in TABLE if row.holds(op, capability, sizes))
    return next(rows, DEFAULT)
