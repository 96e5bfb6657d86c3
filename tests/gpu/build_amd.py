"""Compiles the Triton ops for AMD's gfx942, without a GPU: `python -m tests.gpu.build_amd`.

Every variant of every op. It fails where a program takes more shared memory than those devices have, and
where a linear has another matrix instruction than its sums are to come from. Nothing is tabulated: none of it
has been run.
"""

import argparse
import os
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qspec_kernels.backends.triton._tiles import AMD_ARCH
from qspec_kernels.backends.triton._variants import Variant
from tests.gpu import build_table

TARGET = GPUTarget("hip", "gfx942", 64)
SHARED = 64 << 10
# matrix instructions of linears, of integers and not: sums of floats are those of one size, for any number of
# tokens
UNITS = {True: ("v_mfma_i32_16x16x", "v_mfma_i32_32x32x"), False: ("v_mfma_f32_32x32x",)}
# what the kernels ask for the device that they are compiled for
DRIVER = SimpleNamespace(get_current_target=lambda: TARGET)


def compiled(variant: Variant, folder: str, target: GPUTarget = TARGET) -> Any:
    """What Triton makes of a variant: `asm`, `metadata`."""
    names = variant.kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible}
    source = ASTSource(variant.kernel, signature, dict(variant.constexprs), attributes)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        return triton.compile(source, target=target, options=variant.options())


def wrong(variant: Variant, folder: str) -> str:
    """What is wrong with a variant for AMD's devices; empty if nothing."""
    if TARGET.warp_size * variant.num_warps > 1024:
        return f"{variant.name}: {variant.num_warps} warps"
    built = compiled(variant, folder)
    if built.metadata.shared > SHARED:
        return f"{variant.name}: {built.metadata.shared} bytes of shared memory"
    # the sum of splits multiplies nothing
    if not variant.name.startswith("linear") or "BLOCK_M" not in variant.constexprs:
        return ""
    units = sorted(set(re.findall(r"v_mfma_\w+", built.asm["amdgcn"])))
    allowed = UNITS[bool(build_table.INTEGER_LINEAR.match(variant.name))]
    return "" if units and all(unit.startswith(allowed) for unit in units) else f"{variant.name}: {units}"


def _of_op(op: str) -> tuple[int, list[str]]:
    triton.runtime.driver._active, torch.version.hip = DRIVER, "7.1"
    variants = build_table.variants(op, AMD_ARCH)
    with tempfile.TemporaryDirectory() as folder:
        return len(variants), [fault for variant in variants if (fault := wrong(variant, folder))]


def main() -> int:
    """Compile them; the number of faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", nargs="+", default=build_table.ops(), choices=build_table.ops())
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_of_op, options.ops))
    faults = [fault for _, of_op in found for fault in of_op]
    print("\n".join(faults) or f"{sum(count for count, _ in found)} variants, nothing wrong")
    return len(faults)


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
