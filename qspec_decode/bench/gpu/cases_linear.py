"""What linears are checked on: every format and group size, tails, bias and residual."""

import math
from collections.abc import Iterator

import torch

from qspec_decode.bench.gpu.backends import function
from qspec_decode.bench.gpu.case import ROUNDED_TOGETHER, ROWS, Case, named
from qspec_kernels import formats, quantize_act

# inputs, outputs: whole tiles; tails everywhere; long sums, cut in parts, of a shape that ends within a tile
SHAPES = ((256, 64), (300, 70), (2112, 144))
GROUPS = (32, 64, 128, -1)
PRECISIONS = ("fp32", "bf16", "w4a16", "w4a8", "w4a4", "mxfp4a16", "mxfp4a8")


def linears(precision: str, generator: torch.Generator) -> Iterator[Case]:
    """Cases of one precision."""
    op = f"linear_{precision}"
    for index, (k, n) in enumerate(SHAPES):
        weight = torch.randn(n, k, generator=generator) / math.sqrt(k)
        x = torch.randn(ROWS, k, generator=generator)
        bias, residual = torch.randn(n, generator=generator), torch.randn(ROWS, n, generator=generator)
        roundings = -(-k // ROUNDED_TOGETHER)
        dtype = torch.float32 if index == 0 else torch.bfloat16
        # float64 rounds nothing: rounding is done before
        rounded = x if precision == "fp32" else x.bfloat16().to(dtype)
        if precision in ("fp32", "bf16"):
            dense = weight if precision == "fp32" else weight.bfloat16()
            args = (rounded, dense, bias, residual.to(rounded.dtype))
            yield Case(
                op,
                named(k, n, rounded.dtype),
                args,
                (0, 3),
                (),
                "close",
                function("torch", "linear_fp32"),
                roundings,
            )
            continue
        kind, act = ("int4", precision[2:]) if precision.startswith("w4") else ("mxfp4", precision[5:])
        module = formats.get(kind)
        for group in (32,) if kind == "mxfp4" else GROUPS if index == 0 else (128,):
            codes, scales = module.quantize(weight) if kind == "mxfp4" else module.quantize(weight, group)
            packed = module.pack(codes, scales, group)
            sizes = (n, k, packed.group_size)
            name = f"{named(k, n, dtype if act == 'a16' else torch.int8)} {kind} g{packed.group_size}"
            if act == "a16":
                args = (rounded, packed, bias, residual.to(dtype), *sizes)
                yield Case(op, name, args, (0, 3), roundings=roundings)
            else:
                taken = quantize_act(
                    x, bits=int(act[1:]), group_size=packed.group_size if act == "a4" else None
                )
                args = (taken.codes, taken.scales, packed, bias, residual, *sizes)
                yield Case(op, name, args, (0, 1, 4), kind="same")
