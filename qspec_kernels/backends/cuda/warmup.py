"""Compiles and loads kernels before they are needed."""

import importlib
from collections.abc import Iterable

import torch

from qspec_kernels.backends.cuda import launch
from qspec_kernels.backends.cuda.tiles import ROWS
from qspec_kernels.errors import UsageError
from qspec_kernels.formats import PackedWeight, canonical

_STEMS = {"int4": "w4", "mxfp4": "mxfp4"}


def warmup(weights: Iterable[PackedWeight], acts: Iterable[str], rows: Iterable[int] = ROWS) -> None:
    """Have the linears of these weights ready, for any number of rows.

    A CUDA graph cannot be captured while a kernel is compiled or loaded, and the first request should not
    wait for it. Of other ops one call does the same.

    Parameters
    ----------
    weights
        On the GPU they will be used on, in the byte order that its kernels read.
    acts
        What activations will be rounded to: "a16", "a8", "a4".
    rows
        Numbers of rows to be ready for; by default any.

    Raises
    ------
    UsageError
        If a weight is not on a GPU or its GPU cannot run a kernel.
    KernelUnavailable
        If the compiler or CuPy is missing, or a CUDA graph is being captured.
    """
    acts, rows = tuple(acts), tuple(rows)
    for weight in weights:
        if weight.device.type != "cuda":
            raise UsageError(
                f"a weight is on {weight.device}; expected a GPU",
                "Move it there: weight.to('cuda').",
            )
        for act in acts:
            module = importlib.import_module(
                f"qspec_kernels.backends.cuda.linear_{_STEMS[canonical(weight.format)]}{act}"
            )
            why_not = getattr(module, "why_not", None)
            if why_not and (reason := why_not(torch.cuda.get_device_capability(weight.device))):
                raise UsageError(f"act {act!r} of {weight.format}: {reason}", "Leave it to another backend.")
            arch = launch.arch(weight.device)
            for m in rows:
                for kernel in module.kernels(m, *weight.shape, weight.group_size, arch):
                    launch.load(kernel, weight.device)
