"""Correct before fast: what a kernel must compute before it is timed."""

import torch
from torch import Tensor

from qspec_kernels import QSpecError, QuantizedActivation


def same(name: str, out: Tensor, expected: Tensor) -> None:
    """Raise a QSpecError unless two results are equal bit for bit."""
    equal = out.shape == expected.shape and out.dtype == expected.dtype and torch.equal(out, expected)
    if not equal:
        raise QSpecError(
            f"{name} computed something else than its definition, so it was not timed",
            "This is a bug in QSpec; please report it with `qspec doctor`.",
        )


def close(name: str, out: Tensor, exact: Tensor, low: Tensor, roundings: int = 1) -> None:
    """Raise a QSpecError where a result is too far from the exact one.

    As far as it may be is twice the error of `low`, the same in plain low-precision PyTorch, and twice so
    many roundings of the largest value.
    """
    rounding = roundings * torch.finfo(out.dtype).eps * exact.abs().max()
    budget = 2 * ((low.double() - exact).abs().max() + rounding)
    error = (out.double() - exact).abs().max()
    # a NaN compares false
    if not bool(error <= budget):
        raise QSpecError(
            f"{name} is off by {error.item():.3e}, at most {budget.item():.3e} is right, so it was not timed",
            "This is a bug in QSpec or in what it is compared with; please report it with `qspec doctor`.",
        )


def same_activation(name: str, out: QuantizedActivation, x: Tensor) -> None:
    """Raise a QSpecError unless `out` is float32 x quantised by the definition of `quantize_act`."""
    top = 127 if out.bits == 8 else 7
    absmax = x.abs().amax(1, keepdim=True)
    scales = absmax / top
    codes = torch.where(scales == 0, 0, x / scales).round().clamp(-top, top).to(torch.int8)
    same(name, out.scales, scales)
    same(name, out.codes, codes)
