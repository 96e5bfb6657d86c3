"""What the prefill phase's linears compile on shapes of real models: layers of Llama-3.1-8B."""

from collections.abc import Iterator
from typing import Any

from qspec_kernels.backends.triton._launch import Plan
from qspec_kernels.backends.triton._linear_variants import CUT, RAGGED, WHOLE, matrix_unit
from qspec_kernels.backends.triton._prefill import linear_prefill
from qspec_kernels.backends.triton._prefill_dense import linear_dense_prefill, plan_dense
from qspec_kernels.backends.triton._prefill_launch import plan_prefill
from qspec_kernels.backends.triton._variants import Variant

# a long prompt, whose tiles are the largest, shorter ones, and a K with a tail
LONG = (*WHOLE, 4096)
CASES = [LONG, (*CUT, 512), (*CUT, 20), (*RAGGED, 4096)]


def packed_variants(op: str, arch: int, *, mxfp4: bool, act: int = 0) -> Iterator[Variant]:
    """Variants of a packed linear with codes of `act` bits, or with floats where it is 0."""
    for group in (32,) if mxfp4 else (128, 32, 64, 4096):
        for n, k, m in CASES if mxfp4 or group == 128 else [LONG]:
            act_groups = 0 if act == 0 else -(-k // group) if act == 4 else 1
            plan = plan_prefill(
                (m, n, k), group, arch, mxfp4=mxfp4, x_bytes=1 if act else 2, act_groups=act_groups
            )
            pointers = {"x_ptr": "*i8" if act else "*bf16", "w_ptr": "*u8", "scale_ptr": "*i32"}
            if act:
                pointers["act_ptr"] = "*fp32"
            yield _variant(f"{op} g{group} {n}x{k} m={m}", linear_prefill, pointers, plan, arch)


def dense_variants(op: str, arch: int) -> Iterator[Variant]:
    """Variants of the dense linear in bfloat16."""
    for n, k, m in CASES:
        pointers = {"x_ptr": "*bf16", "w_ptr": "*bf16"}
        plan = plan_dense((m, n, k), arch)
        yield _variant(f"{op} {n}x{k} m={m}", linear_dense_prefill, pointers, plan, arch)


def _variant(name: str, kernel: Any, pointers: dict[str, str], plan: Plan, arch: int) -> Variant:
    # float32 is what a model's residual stream is, and what takes the most registers
    pointers = pointers | {"residual_ptr": "*fp32", "out_ptr": "*fp32"}
    integers = [name for name in ("m", "n", "k", "n16") if name in kernel.arg_names]
    signature = pointers | dict.fromkeys(integers, "i32")
    return Variant(
        name=name,
        kernel=kernel,
        signature=signature,
        constexprs={name: plan.constants.get(name) for name in kernel.arg_names if name not in signature},
        divisible=tuple(name for name in signature if name != "m"),
        num_warps=plan.tile.num_warps,
        num_stages=plan.tile.num_stages,
        fp_fusion=plan.fp_fusion,
        opcodes=("LDGSTS", matrix_unit(arch, integer=pointers["x_ptr"] == "*i8")),
    )
