"""How much memory a checkpoint will take in given precisions, and how much there is."""

import ctypes
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qspec_decode import config as configs
from qspec_decode import load_options
from qspec_decode.config import ModelConfig
from qspec_decode.load_options import LoadOptions
from qspec_decode.machine import available_bytes, free_bytes, gb
from qspec_decode.tensors import layer_shapes
from qspec_kernels import UsageError


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a loaded model takes.

    Parameters
    ----------
    embedding
        The embedding table, with the output matrix where they are one.
    sets
        Per weight set, its layers and heads that no other set shares.
    peak
        The most that loading takes at any time.
    kv_per_token
        What each position of each sequence adds to a bf16 cache.
    """

    embedding: int
    sets: dict[str, int]
    peak: int
    kv_per_token: int

    @property
    def total(self) -> int:
        """The finished model, without caches."""
        return self.embedding + sum(self.sets.values())


def memory_estimate(
    path: str | Path = "demo",
    precisions: str | Iterable[str] = ("bf16",),
    *,
    group_size: int = 128,
    rotate: bool | Iterable[str] = False,
    keep: Iterable[str] = (),
    quant_lm_head: bool | Iterable[str] = False,
    dtype: torch.dtype | None = None,
) -> MemoryEstimate:
    """What `load` with the same arguments will take, from `config.json` alone.

    Raises
    ------
    CheckpointError
        When the directory has no usable `config.json`.
    UsageError
        For an option that `load` would refuse.
    """
    config = configs.from_dir(configs.resolve(path))
    options = load_options.parse(
        precisions, group_size, rotate, keep, quant_lm_head, dtype, config.num_hidden_layers
    )
    return estimate(config, options)


_CPU = torch.device("cpu")
# what quantising and rotating a few rows takes, however large the matrix
_STEPS_BYTES = 32 << 20


def estimate(config: ModelConfig, options: LoadOptions) -> MemoryEstimate:
    """The same for a configuration and options that were read already."""
    shapes = {key: shape for key, shape in layer_shapes(config).items() if len(shape) == 2}
    word = options.dtype.itemsize
    table = config.vocab_size * config.hidden_size
    embedding = table * (word if "fp32" in options.sets else 2)
    # a 16-bit head of its own: where the table is not it, or is wider
    half_head = 0 if config.tie_word_embeddings and "fp32" not in options.sets else 2 * table
    sets, half_head_in = {}, None
    for name in options.sets:
        size = 0
        for layer in range(config.num_hidden_layers):
            for field, parts in load_options.FUSED.items():
                kept = options.keeps(layer, field)
                size += sum(_matrix_bytes(shapes[f"{p}_proj"], name, kept, options) for p in parts)
        if name == "fp32":
            size += 0 if config.tie_word_embeddings else table * word
        elif name not in options.quantised_heads:
            half_head_in = half_head_in or name
            size += half_head if half_head_in == name else 0
        if name in options.quantised_heads or (name == "mxfp4" and not options.keep_head):
            size += _matrix_bytes((config.vocab_size, config.hidden_size), name, False, options)
        sets[name] = size
    # one linear is at work at a time: as read, as float32, rotated, and joined with others
    largest = max(math.prod(shape) for shape in shapes.values())
    at_work = _STEPS_BYTES + largest * (20 if options.rotated else 16)
    return MemoryEstimate(
        embedding,
        sets,
        embedding + sum(sets.values()) + at_work,
        kv_per_token=2 * 2 * config.kv_size * config.num_hidden_layers,
    )


def _matrix_bytes(shape: tuple[int, ...], set_name: str, kept: bool, options: LoadOptions) -> int:
    rows, columns = shape
    if set_name == "fp32":
        return rows * columns * options.dtype.itemsize
    if set_name == "bf16" or kept:
        return rows * columns * 2
    if set_name == "int4":
        group = columns if options.group_size == -1 else options.group_size
        return rows * (math.ceil(columns / 2) + 2 * math.ceil(columns / group))
    return rows * (math.ceil(columns / 2) + math.ceil(columns / 32))


def check_fits(config: ModelConfig, options: LoadOptions, device: torch.device = _CPU) -> None:
    """Raise a `UsageError` that says what would fit when loading would not.

    A GPU gets finished layers one by one; what their making takes is the host's. Machines that do not say
    how much memory they have are taken at the user's word.
    """
    available = available_bytes() if device.type == "cpu" else free_bytes(device)
    needed = _needed(config, options, device)
    if available is None or needed <= available:
        return
    alone = _alone(config, options, device)
    fitting = [f"{name} alone ({gb(size)})" for name, size in alone.items() if size <= available]
    least = min(alone, key=lambda name: alone[name])
    hint = f"These would fit: {', '.join(fitting)}."
    if not fitting:
        hint = f"Even {least} alone needs {gb(alone[least])}; take a smaller model or a larger machine."
    where = "" if device.type == "cpu" else f" on {device}"
    raise UsageError(f"{_loading(options)} needs {gb(needed)}, {gb(available)} are available{where}", hint)


def refused(config: ModelConfig, options: LoadOptions, device: torch.device = _CPU) -> UsageError:
    """The error for memory that `check_fits` found and the system refused, as under `ulimit -v`."""
    needed = _needed(config, options, device)
    smaller = [f"{name} alone ({gb(n)})" for name, n in _alone(config, options, device).items() if n < needed]
    return UsageError(
        f"{_loading(options)} needs {gb(needed)}, which the system refused",
        f"Raise the limit, or load less: {', '.join(smaller) or 'a smaller model'}.",
    )


def _loading(options: LoadOptions) -> str:
    return f"loading {' + '.join(options.sets)} weights"


def _needed(config: ModelConfig, options: LoadOptions, device: torch.device) -> int:
    found = estimate(config, options)
    return found.peak if device.type == "cpu" else found.total


def _alone(config: ModelConfig, options: LoadOptions, device: torch.device) -> dict[str, int]:
    """What loading a single set would take, by its name."""
    sets = ("bf16", "mxfp4", "int4")
    return {name: _needed(config, replace(options, sets=(name,)), device) for name in sets}


def give_back() -> None:
    """Return memory that was freed, but that the C library keeps for later, to the machine.

    Weights that stay and matrices that were only passed through lie side by side in its pools, so it
    keeps far more than it needs. Does nothing where the C library is not glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
