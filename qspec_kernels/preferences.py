"""Which backend of a GPU is asked first for an op: a pure function over a small table.

What a backend cannot run it refuses by itself, with `why_not` in the op's file, and the next one is asked.
The table says which is better of those that can, and why. What it has is counted, in launch plans and machine
code; none of it is timed. A row that measurements ask for goes before those that it corrects.

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
    why
        What the first has over the others: what `explain` says where it serves.
    least, most
        Compute capabilities, both included.
    largest
        The most of each of the call's sizes (see `dispatch.find`), included; such a row holds for no call
        whose sizes are unknown. None for any sizes.
    """

    ops: tuple[str, ...]
    backends: tuple[str, ...]
    why: str
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
        ("linear_w4a16", "linear_mxfp4a16"),
        ("cuda", "triton", "torch"),
        "one token over 4096 x 4096 weights keeps 2048 warps at work in one launch, Triton's at most 1024,"
        " with a second launch for their sums (counted, not measured)",
    ),
    Row(
        ("linear_w4a8", "linear_w4a4", "linear_mxfp4a8"),
        ("cuda", "triton", "torch"),
        "one token over 4096 x 4096 weights keeps 2048 warps at work, Triton's 256 (counted, not measured)",
    ),
    # base matrices of order 1, of powers of two; wider rows fit into no block
    Row(
        ("hadamard_quantize_act",),
        ("cuda", "triton", "torch"),
        "its codes are those of CPUs bit for bit, in about as many instructions (counted, not measured)",
        largest=(32768, 1),
    ),
    Row(
        ("hadamard_quantize_act",),
        ("triton", "cuda", "torch"),
        "it adds up parts of a row on matrix units, in up to three instructions for a feature of each, where"
        " CUDA's kernel takes six (counted, not measured)",
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
    found = row(op, capability, sizes)
    return found.backends if found else DEFAULT


def row(
    op: str, capability: tuple[int, int] | None = None, sizes: tuple[int, ...] | None = None
) -> Row | None:
    """The first row that holds for a call, of which these are as `backends` takes them."""
    return next((one for one in TABLE if one.holds(op, capability, sizes)), None)


def rows_by_size(op: str, capability: tuple[int, int] | None = None) -> tuple[Row, ...]:
    """The rows before that one of a call of unknown sizes, which hold where sizes are small enough."""
    later = row(op, capability)
    before = TABLE[: TABLE.index(later)] if later else TABLE
    return tuple(one for one in before if one.largest and one.holds(op, capability, one.largest))
