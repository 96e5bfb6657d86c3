"""Weight formats, one file per byte order; the file's name is the format's name.

`int4` and `mxfp4` are the canonical orders that checkpoints hold, with `quantize` and `dequantize`
beside `pack` and `unpack`. The others, `<canonical>_<order>`, hold the same codes as a device wants them.
"""

import importlib
import pkgutil
from functools import lru_cache
from types import ModuleType

from torch import Tensor

from qspec_kernels.errors import FormatError
from qspec_kernels.formats.activation import QuantizedActivation
from qspec_kernels.formats.packed import PackedWeight

__all__ = ["PackedWeight", "QuantizedActivation", "canonical", "convert", "dequantize", "get", "names"]


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


def dequantize(packed: PackedWeight) -> Tensor:
    """The float32 [n, k] values of a weight in any byte order."""
    codes, scales = get(packed.format).unpack(packed)
    return get(canonical(packed.format)).dequantize(codes, scales, packed.group_size)
