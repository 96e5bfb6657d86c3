"""One thing that kernels are checked on: an op with arguments of one kind."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = 64
# how the files of a phase's own kernels end
PREFILL = "_prefill"
# matrix units add several products at a time and cut off what does not fit
ROUNDED_TOGETHER = 32


@dataclass(frozen=True)
class Case:
    """One op on arguments of one kind.

    Parameters
    ----------
    by_row
        Places of arguments that have a row for each token: of these a call with M tokens gets the first M.
    changed
        Places of arguments, also in `by_row`, that are results: the op writes into them.
    kind
        "same": bit-equal to the torch backend on the CPU. "close": within the bound of float64. "codes":
        codes and scales, half a step and that bound away from what `floats` computes.
    floats
        For float64: a function that takes the arguments; by default the torch backend's own.
    roundings
        Of the largest result that are allowed besides the error of plain float32.
    repeated
        Numbers of tokens beyond `ROWS`: the first ones again and again, and so have to be the results.
    """

    op: str
    shape: str
    args: tuple[Any, ...]
    by_row: tuple[int, ...] = (0,)
    changed: tuple[int, ...] = ()
    kind: str = "close"
    floats: Callable[..., Any] | None = None
    roundings: int = 1
    repeated: tuple[int, ...] = ()

    @property
    def definition(self) -> str:
        """The torch backend's file, which is the same in every phase."""
        return self.op.removesuffix(PREFILL)

    def first(self, rows: int) -> tuple[Any, ...]:
        """Arguments of the first so many tokens."""
        return tuple(one[:rows] if place in self.by_row else one for place, one in enumerate(self.args))


Maker = Callable[[str, torch.dtype, torch.Generator], Iterator[Case]]
"""(op, dtype, generator) -> the op's cases for inputs of that type."""


def first_and_last(cases: Sequence[Case]) -> list[Case]:
    """Those two of an op's cases, or the one that there is."""
    return [*cases[:1], *cases[1:][-1:]]


def named(k: int, n: int, dtype: torch.dtype) -> str:
    """Inputs, outputs and type, as a case shows them."""
    return f"{k}x{n} {str(dtype).removeprefix('torch.')}"


def random(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(shape, generator=generator).to(dtype)


def coded(op: str, name: str, args: tuple[Any, ...], floats: Callable[..., Tensor]) -> Case:
    """A case of codes and scales; its arguments end with bits, group size and clip."""
    bits, group = args[-3:-1]
    return Case(op, f"{name} a{bits} g{group}", args, kind="codes", floats=floats, roundings=8)
