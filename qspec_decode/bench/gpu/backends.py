"""Files of backends that serve an op on a device, each for itself: dispatch takes the first."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from qspec_decode.bench.gpu.case import PREFILL
from qspec_decode.bench.gpu.device import Device
from qspec_kernels import PackedWeight, formats


def refusal(device: Device, backend: str, op: str) -> str:
    """Why a backend does not serve an op; empty where it does."""
    if not _has(backend, op):
        return _dispatch().NO_KERNEL
    if reason := lacking(device, backend):
        return reason
    why_not = getattr(_module(backend, op), "why_not", None)
    return why_not(device.capability) if why_not else ""


def lacking(device: Device, backend: str) -> str:
    """Why no kernel of a backend runs on a device; empty where some may."""
    if backend not in device.backends:
        return f"{backend} is no backend of this device"
    return _dispatch().lacking(backend, device.capability)


def fragments() -> Any:
    """The file that asks a GPU what the CUDA kernels take for granted of its matrix instructions."""
    return _module("cuda", "_fragments")


def serving(device: Device, op: str) -> list[str]:
    """Backends of the device that serve an op."""
    return [backend for backend in device.backends if not refusal(device, backend, op)]


def function(backend: str, op: str) -> Callable[..., Any]:
    """What a backend calls for an op; arguments are those of the torch backend's file of the same name."""
    return getattr(_module(backend, op), op)


@contextmanager
def forced(backend: str, op: str) -> Iterator[None]:
    """Within it PyTorch's op takes this backend's file, whichever it would ask first."""
    dispatch = _dispatch()
    find, chosen = dispatch.find, function(backend, op)
    name = op.removesuffix(PREFILL)
    dispatch.find = lambda wanted, *args, **named: chosen if wanted == name else find(wanted, *args, **named)
    try:
        yield
    finally:
        dispatch.find = find


def order(backend: str, op: str) -> str:
    """Byte order of the packed weights that a file reads."""
    return _module(backend, op).READS


def arguments(
    args: Sequence[Any], backend: str, op: str, device: torch.device, dtype: torch.dtype | None = None
) -> list[Any]:
    """Arguments on a device, as the file wants them: packed weights become bytes and scales in its order.

    Parameters
    ----------
    dtype
        What tensors of floats are converted to; None leaves them.
    """
    found: list[Any] = []
    for one in args:
        if isinstance(one, PackedWeight):
            packed = formats.convert(one, order(backend, op)).to(device)
            found += [packed.data, packed.scales]
        elif isinstance(one, Tensor):
            wanted = dtype if dtype is not None and one.is_floating_point() else one.dtype
            # a copy: ops may write into it
            found.append(one.to(device=device, dtype=wanted, copy=True))
        else:
            found.append(one)
    return found


def _has(backend: str, op: str) -> bool:
    return find_spec(f"qspec_kernels.backends.{backend}.{op}") is not None


def _module(backend: str, op: str) -> Any:
    return importlib.import_module(f"qspec_kernels.backends.{backend}.{op}")


def _dispatch() -> Any:
    return importlib.import_module("qspec_kernels.dispatch")
