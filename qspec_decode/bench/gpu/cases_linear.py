"""What linears are checked on: both phases, every format and group size, tails, bias and residual."""

import math
from collections.abc import Iterator
from functools import partial

import torch

from qspec_decode.bench.gpu.backends import function
from qspec_decode.bench.gpu.case import PREFILL, ROUNDED_TOGETHER, ROWS, Case, named
from qspec_kernels import formats, quantize_act

# inputs, outputs: whole tiles; tails everywhere; long sums, cut in parts, of a shape that ends within a tile
SHAPES = ((256, 64), (300, 70), (2112, 144))
# of a prefill, whose sums are never cut: outputs enough for long prompts to take the largest tiles
WIDE = (512, 4112)
# tokens that are verified at once, and prompts: tiles are others than for a few
VERIFIED, PROMPTS = (128, 1024), (128, 192, 256, 512, 4096)
GROUPS = (32, 64, 128, -1)
PRECISIONS = ("fp32", "bf16", "w4a16", "w4a8", "w4a4", "mxfp4a16", "mxfp4a8")
# kernels of the prefill phase are for what models are made of
OPS = (
    *(f"linear_{name}" for name in PRECISIONS),
    *(f"linear_{name}{PREFILL}" for name in PRECISIONS if name != "fp32"),
)


def linears(op: str, generator: torch.Generator) -> Iterator[Case]:
    """Cases of one precision in one phase."""
    prefill = op.endswith(PREFILL)
    precision = op.removeprefix("linear_").removesuffix(PREFILL)
    for index, (k, n) in enumerate((*SHAPES[:2], WIDE if prefill else SHAPES[2])):
        weight = torch.randn(n, k, generator=generator) / math.sqrt(k)
        x = torch.randn(ROWS, k, generator=generator)
        bias, residual = torch.randn(n, generator=generator), torch.randn(ROWS, n, generator=generator)
        dtype = torch.float32 if index == 0 else torch.bfloat16
        # float64 rounds nothing: rounding is done before
        rounded = x if precision == "fp32" else x.bfloat16().to(dtype)
        make = partial(
            Case,
            op,
            roundings=-(-k // ROUNDED_TOGETHER),
            repeated=() if index < 2 else PROMPTS if prefill else VERIFIED,
        )
        if precision in ("fp32", "bf16"):
            dense = weight if precision == "fp32" else weight.bfloat16()
            args = (rounded, dense, bias, residual.to(rounded.dtype))
            floats = function("torch", "linear_fp32")
            yield make(named(k, n, rounded.dtype), args, (0, 3), floats=floats)
            continue
        kind, act = ("int4", precision[2:]) if precision.startswith("w4") else ("mxfp4", precision[5:])
        module = formats.get(kind)
        for group in (32,) if kind == "mxfp4" else GROUPS if index == 0 else (128,):
            codes, scales = module.quantize(weight) if kind == "mxfp4" else module.quantize(weight, group)
            packed = module.pack(codes, scales, group)
            sizes = (n, k, packed.group_size)
            name = f"{named(k, n, dtype if act == 'a16' else torch.int8)} {kind} g{packed.group_size}"
            if act == "a16":
                yield make(name, (rounded, packed, bias, residual.to(dtype), *sizes), (0, 3))
            else:
                taken = quantize_act(
                    x, bits=int(act[1:]), group_size=packed.group_size if act == "a4" else None
                )
                args = (taken.codes, taken.scales, packed, bias, residual, *sizes)
                yield make(name, args, (0, 1, 4), kind="same")
