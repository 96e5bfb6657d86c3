"""Checks that several ops share. Each costs well under a microsecond when it passes."""

import torch
from torch import Tensor

from qspec_kernels.errors import UsageError

FLOATS = (torch.float32, torch.bfloat16, torch.float64)


def floating(name: str, x: Tensor) -> None:
    """`x` has a dtype that the ops compute with."""
    if x.dtype not in FLOATS:
        raise UsageError(
            f"{name} is {x.dtype}; expected float32, bfloat16 or float64", f"Convert it: {name}.float()."
        )
    if x.ndim == 0 or x.shape[-1] == 0:
        raise UsageError(
            f"{name} has shape {list(x.shape)}; expected at least one feature",
            f"Features are the last dimension; where each value is one, pass {name}.unsqueeze(-1).",
        )


def unrounded(name: str, x: Tensor) -> None:
    """`x` is float32 or float64, where a 16-bit dtype would merge what must be told apart."""
    if x.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"{name} is {x.dtype}; expected float32 or float64", f"Convert it: {name}.float().")
    floating(name, x)


def axes(name: str, tensor: Tensor, *expected: str) -> None:
    """`tensor` has as many dimensions as there are names for them."""
    if tensor.ndim != len(expected):
        raise UsageError(
            f"{name} has shape {list(tensor.shape)}; expected [{', '.join(expected)}]",
            f"Reshape it to these {len(expected)} dimensions.",
        )


def same_device(name: str, tensor: Tensor, x_name: str, x: Tensor) -> None:
    """Two tensors are on one device."""
    if tensor.device != x.device:
        raise UsageError(
            f"{name} is on {tensor.device} but {x_name} is on {x.device}",
            f"Move one: {name}.to({x_name}.device).",
        )


def shape(name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    """`tensor` has exactly the expected shape; `meaning` says what has it."""
    if tensor.shape != expected:
        raise UsageError(
            f"{name} has shape {list(tensor.shape)}; expected {list(expected)}", f"Pass {meaning}."
        )


def integers(name: str, tensor: Tensor) -> None:
    """`tensor` holds int32 or int64."""
    if tensor.dtype not in (torch.int32, torch.int64):
        raise UsageError(f"{name} is {tensor.dtype}; expected int32 or int64", f"Convert it: {name}.int().")


def in_range(name: str, tensor: Tensor, stop: int, meaning: str) -> None:
    """Every value lies in 0..stop-1. Only for CPU tensors: elsewhere looking would wait for the device."""
    if tensor.device.type != "cpu" or not tensor.numel():
        return
    values = tensor.tolist()
    low, high = min(values), max(values)
    if low < 0 or high >= stop:
        raise UsageError(
            f"{name} holds {low if low < 0 else high}; expected 0..{stop - 1}: {meaning}",
            f"Allocate a larger cache, or pass {name} that lie in this one.",
        )
