"""Counter-based noise: a uniform number is a function of (row seed, stream, position).

Nothing is drawn from a generator with a state, so a row's noise does not depend on its neighbours
in the batch, on how many tokens a round commits, or on the order in which positions are visited.
Every level and purpose has its own stream: a number shared by a drafter's draw, an acceptance coin
and a residual draw would bias the output.
"""

import secrets
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from jaxtyping import Float64, Int64
from torch import Tensor

from qspec_decode import checks
from qspec_kernels import UsageError

RowSeed = tuple[int, int]
Seed = int | Sequence[int | RowSeed] | None

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLY_2 = 0x94D049BB133111EB - (1 << 64)


class Purpose(IntEnum):
    """What a number is used for: an acceptance coin, or drawing a token (drafted, residual or bonus)."""

    COIN = 0
    DRAW = 1


def parse_seed(seed: Seed) -> int | tuple[RowSeed, ...] | None:
    """A seed with one pair per row where it is a sequence; the form in which two seeds can be compared.

    Raises
    ------
    UsageError
        What is neither an integer nor a sequence of integers and pairs, or outside 0 .. 2**63 - 1.
    """
    if seed is None:
        return None
    if checks.as_integer(seed) is not None:
        return _in_range(seed, seed)
    entries = checks.plain(seed)
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise _no_seed(seed)
    return tuple(_parse_row_seed(entry) for entry in entries)


def _parse_row_seed(entry: Any) -> RowSeed:
    if checks.as_integer(entry) is not None:
        return _in_range(entry, entry), 0
    pair = checks.plain(entry)
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise _no_seed(entry)
    return _in_range(pair[0], entry), _in_range(pair[1], entry)


def _in_range(part: Any, seed: Any) -> int:
    """One word of `seed` as an int."""
    found = checks.as_integer(part)
    if found is None:
        raise _no_seed(seed)
    if not 0 <= found < 1 << 63:
        raise UsageError(f"seed {seed} is outside 0 .. 2**63 - 1", "Any integer in that range will do.")
    return found


def _no_seed(value: Any) -> UsageError:
    return UsageError(
        f"seed is {value!r}; expected an integer, or for every row an integer or a pair of integers",
        "Leave it out for fresh noise; a result's `seeds` repeat its texts.",
    )


def row_seeds(seed: Seed, batch_size: int) -> list[RowSeed]:
    """One seed pair per row.

    An integer s gives row r the pair (s, r); a sequence gives row r its r-th entry, where an integer
    s stands for (s, 0); None draws a fresh s. Passing a result's `seeds` back reproduces it, also for
    a subset of its rows.

    Raises
    ------
    UsageError
        A sequence whose length is not the batch size; what `parse_seed` refuses.
    """
    parsed = parse_seed(seed)
    if parsed is None:
        parsed = secrets.randbits(62)
    if isinstance(parsed, int):
        return [(parsed, row) for row in range(batch_size)]
    if len(parsed) != batch_size:
        raise UsageError(
            f"{len(parsed)} seeds were given for {batch_size} rows",
            "Pass one integer for the whole batch, or one seed per row.",
        )
    return list(parsed)


def uniform(
    seeds: Int64[Tensor, "rows 2"], level: int, purpose: Purpose, positions: Int64[Tensor, "rows n"]
) -> Float64[Tensor, "rows n"]:
    """Numbers in [0, 1) with 53 random bits, one per row and absolute position.

    The four words are absorbed one after the other into a 64-bit state, each followed by the
    finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), which is a bijection.
    """
    return uniform_of(stream(seeds, level, purpose), positions)


def stream(seeds: Int64[Tensor, "rows 2"], level: int, purpose: Purpose) -> Int64[Tensor, "rows 1"]:
    """What `uniform` makes of all but the positions."""
    state = _mix(seeds[:, :1] + _GOLDEN)
    state = _mix((state ^ seeds[:, 1:]) + _GOLDEN)
    return _mix((state ^ (2 * level + int(purpose))) + _GOLDEN)


def uniform_of(
    state: Int64[Tensor, "*s rows 1"], positions: Int64[Tensor, "rows n"]
) -> Float64[Tensor, "*s rows n"]:
    """The numbers of one or more streams at these positions."""
    state = _mix((state ^ positions) + _GOLDEN)
    return ((state >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def _mix(state: Tensor) -> Tensor:
    # int64 arithmetic wraps; the masks turn arithmetic shifts into logical ones
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * _MULTIPLY_1
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * _MULTIPLY_2
    return state ^ ((state >> 31) & ((1 << 33) - 1))
