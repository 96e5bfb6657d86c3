"""`LoadOptions`: how a checkpoint becomes weight sets, checked before anything is read."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from qspec_decode import precision as names
from qspec_kernels import UsageError

# fields of LayerWeights that hold matrices, and the checkpoint's linears in each, in row order
FUSED: dict[str, tuple[str, ...]] = {
    "qkv": ("q", "k", "v"),
    "o": ("o",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
}
GROUP_SIZES = (32, 64, 128, -1)
DEFAULT_GROUP_SIZE = 128
QUANTISED = ("int4", "mxfp4")
_FIELD_OF = {f"{part}_proj": field for field, parts in FUSED.items() for part in parts}


@dataclass(frozen=True)
class LoadOptions:
    """Parsed arguments of `load`.

    Parameters
    ----------
    precisions
        What the sets serve: those asked for, in that order, then the others.
    sets
        Weight sets to make, each once.
    group_size
        Input features per scale of int4 weights; -1 for one scale per output row.
    rotated
        Sets whose weights are rotated.
    kept
        Matrices that quantised sets hold in bf16, as (layer, field); None stands for every one.
    keep_head
        Whether drafts, too, use the 16-bit output matrix.
    quantised_heads
        Sets whose output matrix is in their own format, for targets as well.
    dtype
        torch.float32 or torch.float64: what "fp32" weights and all arithmetic are in.
    """

    precisions: tuple[str, ...]
    sets: tuple[str, ...]
    group_size: int
    rotated: frozenset[str]
    kept: frozenset[tuple[int | None, str | None]]
    keep_head: bool
    quantised_heads: frozenset[str]
    dtype: torch.dtype

    def keeps(self, layer: int, field: str) -> bool:
        """Whether quantised sets hold this matrix in bf16."""
        return not self.kept.isdisjoint({(layer, field), (layer, None), (None, field)})


def parse(
    precisions: str | Iterable[str],
    group_size: int,
    rotate: bool | Iterable[str],
    keep: Iterable[str],
    quant_lm_head: bool | Iterable[str],
    dtype: torch.dtype | None,
    num_layers: int,
) -> LoadOptions:
    """Check the arguments of `load` against each other and against the number of layers.

    Raises
    ------
    UsageError
        Naming the argument, its value and what is expected.
    """
    wanted = [precisions] if isinstance(precisions, str) else list(precisions)
    if not wanted:
        raise UsageError("precisions is empty, expected at least one, such as 'bf16'")
    asked = [names.canonical(name) for name in wanted]
    sets = tuple(dict.fromkeys(names.set_name(name) for name in asked))
    if group_size not in GROUP_SIZES:
        raise UsageError(f"group_size is {group_size!r}, expected one of {', '.join(map(str, GROUP_SIZES))}")
    if dtype not in (None, torch.float32, torch.float64):
        raise UsageError(f"dtype is {dtype}, expected torch.float32 or torch.float64")
    keep = [keep] if isinstance(keep, str) else list(keep)
    entries = [_parse_keep(entry, num_layers) for entry in keep]
    matrices = frozenset(entry for entry in entries if entry is not None)
    _check_effect(f"group_size is {group_size}", group_size != DEFAULT_GROUP_SIZE, ("int4",), sets)
    _check_effect("rotate is True", rotate is True, QUANTISED, sets)
    _check_effect("quant_lm_head is True", quant_lm_head is True, QUANTISED, sets)
    _check_effect(f"keep names {', '.join(map(repr, keep))}", bool(matrices), QUANTISED, sets)
    _check_effect("keep names 'lm_head'", None in entries, ("mxfp4",), sets)
    quantised_heads = _sets_of("quant_lm_head", quant_lm_head, sets)
    if None in entries and "mxfp4" in quantised_heads:
        raise UsageError(
            "keep names 'lm_head', and quant_lm_head quantises it in the mxfp4 weights",
            "Leave one of them out.",
        )
    return LoadOptions(
        tuple(dict.fromkeys([*asked, *names.served_by(sets)])),
        sets,
        group_size,
        _sets_of("rotate", rotate, sets),
        matrices,
        None in entries,
        quantised_heads,
        dtype or torch.float32,
    )


def parse_device(device: torch.device | str) -> torch.device:
    """The device a model is asked for, with its number.

    Raises
    ------
    UsageError
        What names no device, or one that is not there.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise UsageError(f"device is {device!r}, expected 'cpu', 'cuda' or 'cuda:0'")
    if found.type == "cpu":
        return found
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (found.index or 0) >= count:
        raise UsageError(
            f"device is {str(found)!r}, and PyTorch {torch.__version__} finds {count or 'no'} GPUs",
            "Leave it out to run on the CPU. If there is a GPU, install PyTorch's build for it.",
        )
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def _check_effect(option: str, given: bool, concerned: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Refuse an option about weights of which none are loaded."""
    if given and not set(sets) & set(concerned):
        raise UsageError(
            f"{option}, which is about {' and '.join(concerned)} weights, and those loaded are "
            f"{', '.join(sets)}",
            f"Leave it out, or load a precision that reads {' or '.join(concerned)} weights.",
        )


def _sets_of(option: str, value: bool | Iterable[str], sets: tuple[str, ...]) -> frozenset[str]:
    """The sets that an option is about: all quantised ones, or those of the precisions it names."""
    if isinstance(value, bool):
        return frozenset(QUANTISED).intersection(sets if value else ())
    chosen = [value] if isinstance(value, str) else list(value)
    for name in chosen:
        if names.set_name(name) not in sets:
            raise UsageError(
                f"{option} names {name!r}, whose weights are not among those loaded ({', '.join(sets)})",
                "Name it in precisions as well.",
            )
    return frozenset(names.set_name(name) for name in chosen)


def _parse_keep(entry: str, num_layers: int) -> tuple[int | None, str | None] | None:
    """(layer, field) of an entry such as "down_proj", "layers.0" or "layers.3.q_proj"; None for "lm_head"."""
    parts = [part for part in entry.split(".") if part not in ("model", "self_attn", "mlp", "weight")]
    if parts == ["lm_head"]:
        return None
    layer = None
    if parts[:1] == ["layers"] and len(parts) > 1 and parts[1].isdigit() and int(parts[1]) < num_layers:
        layer, parts = int(parts[1]), parts[2:]
        if not parts:
            return layer, None
    if len(parts) == 1 and parts[0] in _FIELD_OF:
        return layer, _FIELD_OF[parts[0]]
    raise UsageError(
        f"keep names {entry!r}, expected 'lm_head', 'layers.0' to 'layers.{num_layers - 1}', a linear "
        f"({', '.join(_FIELD_OF)}), or both as in 'layers.0.down_proj'"
    )
