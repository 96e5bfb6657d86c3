"""Shapes of models that people run: what kernels are timed on."""

from collections.abc import Sequence
from dataclasses import dataclass

from qspec_kernels import UsageError


@dataclass(frozen=True)
class ModelShape:
    """Widths of one transformer layer, and the vocabulary."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def linears(self) -> "dict[str, LinearShape]":
        """By name: those of a decode step, projections of one input fused, and one projection alone."""
        hidden, wide = self.hidden, self.intermediate
        sizes = {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, hidden),
            "o": (hidden, self.heads * self.head_dim),
            "gate": (wide, hidden),
            "gate_up": (2 * wide, hidden),
            "down": (hidden, wide),
        }
        return {name: LinearShape(f"{self.name}.{name}", n, k) for name, (n, k) in sizes.items()}


@dataclass(frozen=True)
class LinearShape:
    """A weight [n, k]: k inputs, n outputs."""

    name: str
    n: int
    k: int


MODELS = {
    model.name: model
    for model in (
        ModelShape("llama-3.2-1b", 2048, 8192, 32, 8, 64, 128256),
        ModelShape("llama-3-8b", 4096, 14336, 32, 8, 128, 128256),
        ModelShape("qwen2.5-7b", 3584, 18944, 28, 4, 128, 152064),
        ModelShape("llama-3-70b", 8192, 28672, 64, 8, 128, 128256),
    )
}


@dataclass(frozen=True)
class Chosen:
    """What was asked for: models for the ops between linears, and shapes of linears."""

    models: tuple[ModelShape, ...]
    linears: tuple[LinearShape, ...]


def choose(names: Sequence[str]) -> Chosen:
    """Shapes by name: a model for everything in it, `model.linear`, or a linear's `KxN`.

    Raises
    ------
    UsageError
        For a name that is none of those; lists the known ones.
    """
    models: list[ModelShape] = []
    linears: list[LinearShape] = []
    for name in names:
        model, _, linear = name.rpartition(".")
        if name in MODELS:
            models.append(MODELS[name])
            linears += MODELS[name].linears.values()
        elif model in MODELS and linear in MODELS[model].linears:
            linears.append(MODELS[model].linears[linear])
        else:
            linears.append(_sized(name))
    return Chosen(tuple(dict.fromkeys(models)), tuple(dict.fromkeys(linears)))


def _sized(name: str) -> LinearShape:
    k, _, n = name.lower().partition("x")
    if not (k.isdecimal() and n.isdecimal() and int(k) and int(n)):
        linears = ", ".join(next(iter(MODELS.values())).linears)
        raise UsageError(
            f"unknown shape {name!r}; there are {', '.join(MODELS)}",
            f"Or one linear of a model ({linears}), such as llama-3-8b.down, or inputs x outputs, such as"
            " 4096x14336.",
        )
    return LinearShape(f"{int(k)}x{int(n)}", int(n), int(k))
