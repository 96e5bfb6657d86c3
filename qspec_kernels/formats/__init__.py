"""Weight formats, one file per byte order; the file's name is the format's name.

`int4` and `mxfp4` are the canonical orders that checkpoints hold, with `quantize` and `dequantize`
beside `pack` and `unpack`. The others, `<canonical>_<order>`, hold the same codes as a device wants them.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from qspec_kernels.errors import FormatError
from qspec_kernels.formats.activation import QuantizedActivation
from qspec_kernels.formats.packed import PackedWeight

__all__ = [
    "PackedWeight",
    "QuantizedActivation",
    "canonical",
    "convert",
    "dequantize",
    "get",
    "join",
    "names",
]

# rows of a weight that an order may keep in one tile; canonical orders hold row after row
ROWS_TOGETHER = 16


@lru_cache
def names() -> tuple[str, ...]:
    """The formats there are: the files of this folder that can `unpack`."""
    found = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return tuple(sorted(name for name in found if hasattr(_module(name), "unpack")))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


@lru_cache
def get(name: str) -> ModuleType:
    """The module of a format, with `pack` and `unpack`.

    Raises
    ------
    FormatError
        If there is no file of that name; lists those that exist.
    """
    if name not in names():
        raise FormatError(f"unknown weight format {name!r}", f"There are: {', '.join(names())}.")
    return _module(name)


def canonical(name: str) -> str:
    """The canonical format whose codes a format holds.

    >>> canonical("int4_tiles16")
    'int4'
    """
    return name.partition("_")[0]


def convert(packed: PackedWeight, name: str) -> PackedWeight:
    """The same codes and scales in another byte order: `unpack`, then `pack`.

    Raises
    ------
    FormatError
        If the format is unknown or holds other codes (converting int4 to mxfp4 is quantising).
    """
    if packed.format == name:
        return packed
    target = get(name)
    if canonical(packed.format) != canonical(name):
        raise FormatError(
            f"{packed.format!r} and {name!r} hold different codes, so bytes cannot be converted",
            f"Quantise the original weight with formats.{canonical(name)}.quantize.",
        )
    return target.pack(*get(packed.format).unpack(packed), packed.group_size)


def join(parts: Sequence[PackedWeight]) -> PackedWeight:
    """Weights of one format and input width, one below the other, as one.

    Bytes are only moved, unless a part that is not the last ends within a tile of rows.

    Raises
    ------
    FormatError
        If the parts differ in more than their rows.
    """
    first = parts[0]
    kinds = {(part.format, part.shape[1], part.group_size) for part in parts}
    if len(kinds) > 1:
        raise FormatError(
            f"cannot join weights of (format, input width, group size) {sorted(kinds)}; expected one kind",
            "Convert them to one format, or quantise them alike.",
        )
    plain = canonical(first.format)
    if first.format != plain and any(part.shape[0] % ROWS_TOGETHER for part in parts[:-1]):
        return convert(join([convert(part, plain) for part in parts]), first.format)
    scale_axis = get(first.format).SCALE_ROW_AXIS
    return PackedWeight(
        torch.cat([part.data for part in parts]),
        torch.cat([part.scales for part in parts], scale_axis),
        first.format,
        (sum(part.shape[0] for part in parts), first.shape[1]),
        first.group_size,
    )


def dequantize(packed: PackedWeight) -> Tensor:
    """The float32 [n, k] values of a weight in any byte order."""
    codes, scales = get(packed.format).unpack(packed)
    return get(canonical(packed.format)).dequantize(codes, scales, packed.group_size)
