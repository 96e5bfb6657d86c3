"""Cases and comparisons that the kernel tests share."""

from typing import NamedTuple

import torch
from torch import Tensor

import qspec_kernels as qk
from qspec_kernels import formats
from qspec_kernels.formats import PackedWeight

# M, K, N: odd everywhere, K no multiple of a group, N no multiple of a tile
SHAPES = [(1, 64, 16), (3, 100, 37), (2, 7, 3), (17, 300, 70), (5, 1, 1), (9, 521, 48)]

# (format, group size): every group size, and one scale per row
WEIGHTS = [("int4", 32), ("int4", 64), ("int4", 128), ("int4", -1), ("mxfp4", 32)]
INTEGERS = [
    (kind, group, act) for kind, group in WEIGHTS for act in ("a8", "a4") if (kind, act) != ("mxfp4", "a4")
]

FLOATS = [torch.float32, torch.bfloat16]


class Quantized(NamedTuple):
    """A weight as packed bytes, and as the integers and scales that its linears are defined by."""

    packed: PackedWeight
    integers: Tensor
    scales: Tensor
    values: Tensor


def quantized(kind: str, weight: Tensor, group_size: int, *, on_device: bool = True) -> Quantized:
    """Quantise and pack; with `on_device` in the byte order that the chosen path reads."""
    module = formats.get(kind)
    codes, scales = module.quantize(weight) if kind == "mxfp4" else module.quantize(weight, group_size)
    packed = module.pack(codes, scales, group_size)
    if kind == "mxfp4":
        doubled = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12])
        integers = doubled[(codes & 7).long()] * torch.where(codes > 7, -1, 1)
        scales = torch.where(scales == 255, torch.nan, 2.0 ** (scales.double() - 128)).float()
    else:
        integers, scales = codes.long(), scales.float()
    spread = scales.repeat_interleave(packed.group_size, 1)[:, : weight.shape[1]]
    values = integers.double() * spread.double()
    return Quantized(qk.to_device_layout(packed) if on_device else packed, integers, scales, values)


def spread(x: Tensor, rng: torch.Generator) -> Tensor:
    """x with a magnitude for each element, so that sums round and show the order they were made in.

    Sums of a group of randn times 4-bit codes are nearly always exact in float32.
    """
    return x * 2.0 ** torch.randint(-12, 13, x.shape, generator=rng)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal bit for bit: -0 is not 0, and a NaN equals itself."""
    as_bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    return left.dtype == right.dtype and torch.equal(
        left.contiguous().view(as_bits), right.contiguous().view(as_bits)
    )


def assert_within_budget(out: Tensor, exact: Tensor, low: Tensor) -> None:
    """|out - exact| is at most twice (the error of `low`, the same maths in PyTorch, plus one rounding)."""
    rounding = torch.finfo(out.dtype).eps * exact.abs().max()
    budget = 2 * ((low.double() - exact).abs().max() + rounding)
    error = (out.double() - exact).abs().max()
    assert error <= budget, f"error {error.item():.3e} exceeds the budget {budget.item():.3e}"


def assert_within_bound(out: Tensor, exact: Tensor, bound: Tensor) -> None:
    """|out - exact| is at most `bound`, element by element, and one rounding to out's dtype.

    For sizes of which `assert_within_budget` would see too few numbers to know how far off rounding may be.
    """
    error = (out.double() - exact).abs()
    over = error - bound - torch.finfo(out.dtype).eps * exact.abs()
    assert (over <= 0).all(), f"error {error.flatten()[over.argmax()].item():.3e} exceeds the bound"


def linear_bound(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What float32 sums in any order may be off for x [M, K], weight float64 [N, K], bias [N]."""
    magnitude = x.double().abs() @ weight.abs().T + (0 if bias is None else bias.double().abs())
    return magnitude * (x.shape[1] + 4) * torch.finfo(torch.float32).eps
