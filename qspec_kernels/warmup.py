"""Has the linears of weights compiled and loaded before they are needed."""

from collections.abc import Iterable
from itertools import product

import torch

from qspec_kernels import dispatch
from qspec_kernels.formats import PackedWeight
from qspec_kernels.ops.linear import linear

# numbers of rows that between them have every choice of tiles, of each backend: those up to 257 in the decode
# phase; all in the prefill phase, where a choice follows from how many tiles a GPU takes at once (found by
# trying numbers out, on all widths that are multiples of 64 and prompts of up to the last number)
ROWS = (8, 16, 32, 64, 192, 256, 257, 640, 1440, 1632, 2048, 2080, 2560, 2976, 3488, 4096)


def warmup(
    weights: Iterable[PackedWeight],
    acts: Iterable[str],
    rows: Iterable[int] = ROWS,
    *,
    dtype: torch.dtype = torch.bfloat16,
    bias: bool = False,
    residual: bool = False,
    phases: Iterable[str] = ("decode", "prefill"),
) -> None:
    """Have the linears of these weights ready, for any number of rows: each kind is run once, on zeros.

    GPU kernels are compiled on first use, which takes seconds; a CUDA graph cannot be captured meanwhile, and
    the first request should not wait for it. Of other ops one call does the same. Weights on a CPU, whose
    kernels are compiled with the package, are passed over.

    Parameters
    ----------
    weights
        On the device they will be used on, in the byte order that its kernels read.
    acts
        What activations will be rounded to: "a16", "a8", "a4".
    rows
        Numbers of rows to be ready for; by default any, of prompts up to 4096.
    dtype
        Of the activations that will come: bfloat16 or float32.
    bias, residual
        Whether they will come with a bias and a residual.
    phases
        What they will be in; both have kernels of their own where that pays (see `linear`).

    Raises
    ------
    UsageError
        If weights of that format do not serve one of `acts`, or there is no such phase.
    KernelUnavailable
        If no backend serves a weight, or a CUDA graph is being captured.

    Examples
    --------
    Before a model is captured that decodes in `w4a16` and drafts in `w4a8`, which takes in no prompts::

        weights = [layer.weight for layer in layers]
        qspec_kernels.warmup(weights, ["a16"])
        qspec_kernels.warmup(weights, ["a8"], phases=["decode"])
    """
    kinds = {(one.format, one.shape, one.group_size, one.device): one for one in weights}
    acts, rows, phases = tuple(acts), tuple(rows), tuple(phases)
    for weight in kinds.values():
        if not dispatch.compiles(weight.device):
            continue
        n, k = weight.shape
        b = torch.zeros(n, device=weight.device) if bias else None
        for m in rows:
            x = torch.zeros(m, k, dtype=dtype, device=weight.device)
            r = torch.zeros(m, n, dtype=dtype, device=weight.device) if residual else None
            for act, phase in product(acts, phases):
                linear(x, weight, b, act=act, residual=r, phase=phase)
