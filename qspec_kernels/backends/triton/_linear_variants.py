"""What the linears compile on shapes of real models: layers of Llama-3.1-8B, from one token to a prompt."""

from collections.abc import Iterator, Mapping

import torch

from qspec_kernels.backends.triton import _dense
from qspec_kernels.backends.triton._epilogue import add_splits
from qspec_kernels.backends.triton._launch import REDUCE_BLOCK, Plan, plan_packed
from qspec_kernels.backends.triton._packed import linear_packed
from qspec_kernels.backends.triton._variants import Variant

# tokens: one for each tile, from a decode step to a prompt
TOKENS = (1, 16, 32, 64, 4096)
# output and input features of o_proj, cut along K on most devices, and of gate_proj and up_proj together
CUT, WHOLE = (4096, 4096), (28672, 4096)
# a K with a tail
RAGGED = (4096, 4112)
_CASES = [(*CUT, m) for m in TOKENS] + [(*WHOLE, 1), (*WHOLE, 4096), (*RAGGED, 1)]
# the smallest tile and the largest
_ENDS = [(*CUT, 1), (*WHOLE, 4096)]
_BYTES = {"*i8": 1, "*bf16": 2, "*fp32": 4}
# mma.sync; Hopper's warpgroup instructions and Blackwell's, for tiles of 64 output features and four warps.
# Triton 3.7 has none of Blackwell's for integers (3.8 has UTCIMMA): the tested one compiles them to mma.sync
_UNITS = {False: {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}, True: {80: "IMMA", 90: "IGMMA", 100: "IMMA"}}


def packed_variants(op: str, arch: int, *, mxfp4: bool, act: int = 0) -> Iterator[Variant]:
    """Variants of a packed linear with codes of `act` bits, or with floats where it is 0."""
    for group in (32,) if mxfp4 else (128, 32, 64, 4096):
        # every tile, and both types of x, with the format's usual groups
        usual = mxfp4 or group == 128
        for n, k, m in _CASES if usual else _ENDS:
            both = usual and (n, k, m) in _ENDS
            for x in ("*i8",) if act else ("*bf16", "*fp32") if both else ("*bf16",):
                act_groups = 0 if act == 0 else -(-k // group) if act == 4 else 1
                plan = plan_packed(
                    (m, n, k), group, arch, mxfp4=mxfp4, x_bytes=_BYTES[x], act_groups=act_groups
                )
                arguments = {
                    "x_ptr": x,
                    "w_ptr": "*u8",
                    "scale_ptr": "*i32",
                    "act_ptr": "*fp32" if act else None,
                    **_ends(plan, "*fp32" if act else x),
                    **dict.fromkeys(("m", "n", "k", "n16"), "i32"),
                }
                name = f"{op} {x[1:]} g{group} {n}x{k} m={m}"
                yield _variant(name, linear_packed, arguments, plan, arch)
    if op == "linear_w4a16":
        yield _add_variant(op, arch)


def dense_variants(op: str, arch: int, dtype: torch.dtype) -> Iterator[Variant]:
    """Variants of a dense linear that computes in `dtype`."""
    weight = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    for n, k, m in _CASES:
        for x in (weight, "*fp32") if weight == "*bf16" and (n, k, m) in _ENDS else (weight,):
            plan = _dense.plan_dense((m, n, k), dtype, arch)
            arguments = {
                "x_ptr": x,
                "w_ptr": weight,
                **_ends(plan, x),
                **dict.fromkeys(("m", "n", "k"), "i32"),
            }
            yield _variant(f"{op} {x[1:]} {n}x{k} m={m}", _dense.linear_dense, arguments, plan, arch)


def matrix_unit(arch: int, *, integer: bool) -> str:
    """The opcode of an architecture's widest matrix instruction."""
    units = _UNITS[integer]
    return units.get(arch, units[80])


def _ends(plan: Plan, floating: str) -> dict[str, str | None]:
    """Types of bias, residual and output: splits leave float32, and the rest to `add_splits`."""
    apart = plan.splits > 1
    return {
        "bias_ptr": None,
        "residual_ptr": None if apart else floating,
        "out_ptr": "*fp32" if apart else floating,
    }


def _variant(
    name: str, kernel: object, arguments: Mapping[str, str | None], plan: Plan, arch: int
) -> Variant:
    wide = plan.tile.block_n >= 64
    unit = matrix_unit(arch if wide else 80, integer=arguments["x_ptr"] == "*i8")
    if name.startswith("linear_fp32"):
        # sm_100 multiplies and adds two pairs at once
        unit = "FFMA2" if arch == 100 else "FFMA"
    return Variant(
        name=name,
        kernel=kernel,
        signature={argument: kind for argument, kind in arguments.items() if kind},
        constexprs={argument: None for argument, kind in arguments.items() if not kind} | plan.constants,
        divisible=tuple(argument for argument, kind in arguments.items() if kind and argument != "m"),
        num_warps=plan.tile.num_warps,
        num_stages=plan.tile.num_stages,
        fp_fusion=plan.fp_fusion,
        opcodes=("LDGSTS", unit),
    )


def _add_variant(op: str, arch: int) -> Variant:
    """The sum of splits, which is the same for every linear of floats: one of them lists it."""
    plan = plan_packed((1, *CUT), 128, arch, mxfp4=False, x_bytes=2)
    return Variant(
        name=f"{op} bf16 add {plan.splits} splits",
        kernel=add_splits,
        signature={"parts_ptr": "*fp32", "residual_ptr": "*bf16", "out_ptr": "*bf16", "m": "i32", "n": "i32"},
        constexprs={"bias_ptr": None, "SPLITS": plan.splits, "BLOCK": REDUCE_BLOCK},
        divisible=("parts_ptr", "residual_ptr", "out_ptr", "n"),
        fp_fusion=False,
    )
