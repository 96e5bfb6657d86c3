"""Compiles every CUDA kernel for every architecture it serves, without a GPU, and tabulates what came out.

    python -m tests.gpu.build_table_cuda           # writes docs/results/gpu_build_cuda.json
    python -m tests.gpu.build_table_cuda --check   # fails where something is worse than what is committed

Entries are those of build_table.py.
"""

import argparse
import importlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

from qspec_kernels.backends.cuda import _float, _fragments, _integer, _nvrtc, hadamard_quantize_act
from qspec_kernels.backends.cuda._compile import Kernel, options
from qspec_kernels.backends.cuda._tiles import ROWS
from tests.gpu.build_table import TOOLS, Entry, entry_of, faults

TABLE = Path(__file__).parents[2] / "docs" / "results" / "gpu_build_cuda.json"
ARCHS = (80, 86, 89, 90, 100, 120)

# on a layer of an 8B and of a 70B model; the other group sizes on the first alone
SHAPES = ((4096, 4096), (28672, 8192))
GROUPS = {"int4": (128, 64, 32, 4096), "mxfp4": (32,)}
LINEARS = {
    "linear_w4a8": ("int4", "IMMA"),
    "linear_mxfp4a8": ("mxfp4", "IMMA"),
    "linear_w4a4": ("int4", "IMMA"),
    "linear_w4a16": ("int4", "HMMA"),
    "linear_mxfp4a16": ("mxfp4", "HMMA"),
}
# width, order of the base matrix, group: rows and intermediate rows of models from 1B to 70B
ROTATIONS = (
    (2048, 1, 2048),
    (4096, 1, 4096),
    (8192, 1, 8192),
    (8192, 1, 128),
    (14336, 28, 14336),
    (11008, 344, 11008),
)
UNALIGNED_ROTATIONS = ((4096, 1, 4096), (14336, 28, 14336))
# words for names, whether x of rotations and outputs of linears are bfloat16 (float32 otherwise), and whether
# rows begin at multiples of 16 bytes
OPERANDS = (
    ("", True, True),
    ("fp32 ", False, True),
    ("unaligned ", True, False),
    ("fp32 unaligned ", False, False),
)


@dataclass(frozen=True)
class Variant:
    """A kernel and what its machine code must hold; what build_table.py's `faults` looks at."""

    name: str
    kernel: Kernel
    opcodes: tuple[str, ...]


def variants(arch: int) -> Iterator[Variant]:
    """What an architecture is served with, each compilation once."""
    yield from _linears(arch)
    for width, base, group in ROTATIONS:
        for words, bf16, aligned in OPERANDS:
            if aligned or (width, base, group) in UNALIGNED_ROTATIONS:
                kernel = hadamard_quantize_act.kernel(width, width, base, group, bf16=bf16, aligned=aligned)
                yield Variant(f"hadamard_quantize_act {words}{width} g{group}", kernel, ())
    yield Variant("fragments", _fragments.kernel(arch), ("HMMA", "IMMA"))


def _linears(arch: int) -> Iterator[Variant]:
    seen = set()
    for name, (kind, opcode) in LINEARS.items():
        module = importlib.import_module(f"qspec_kernels.backends.cuda.{name}")
        if hasattr(module, "why_not") and module.why_not(divmod(arch, 10)):
            continue
        first, *others = GROUPS[kind]
        cases = [(*shape, first, m) for shape in SHAPES for m in ROWS]
        cases += [(*SHAPES[0], group, m) for group in others for m in (ROWS[0], ROWS[-1])]
        for n, k, group, m in cases:
            kernel = module.kernels(m, n, k, group, arch)[0]
            if kernel not in seen:
                seen.add(kernel)
                yield Variant(f"{name} {n}x{k} g{group} m<={m}", kernel, (opcode, "LDGSTS"))
        (n, k), operand = SHAPES[0], module.operand(SHAPES[0][1], first)
        for m, (words, bf16, aligned) in product((ROWS[0], ROWS[-1]), OPERANDS[1:]):
            if opcode == "HMMA":
                kernel, _ = _float.kernel(name, operand, m, (n, k), arch, bf16_out=bf16, aligned=aligned)
            elif bf16:
                kernel, _ = _integer.kernel(name, operand, m, (n, k), arch, aligned=aligned)
            else:
                # codes are int8 and their outputs float32
                continue
            yield Variant(f"{name} {words}g{first} {n}x{k} m<={m}", kernel, (opcode, "LDGSTS"))


def compile_variant(variant: Variant, arch: int) -> Entry:
    """One entry of the table."""
    kernel = variant.kernel
    code = _nvrtc.compile(kernel.source(), f"{kernel.name}.cu", options(kernel, f"sm_{arch}"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        listing = subprocess.run(
            [TOOLS / "cuobjdump", "-sass", "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return entry_of(listing, kernel.shared_bytes)


def build(arch: int, jobs: int) -> dict[str, Entry]:
    """Entries of an architecture by name of the variant."""
    made = list(variants(arch))
    # the compiler runs outside Python's lock
    with ThreadPoolExecutor(jobs) as pool:
        entries = pool.map(lambda variant: compile_variant(variant, arch), made)
        return {variant.name: entry for variant, entry in zip(made, entries, strict=True)}


def wrong(arch: int, entries: dict[str, Entry], committed: dict[str, Entry]) -> list[str]:
    """Faults of some entries of an architecture, by themselves and against the committed ones."""
    return [
        f"sm_{arch} {variant.name}: {fault}"
        for variant in variants(arch)
        if variant.name in entries
        for fault in faults(
            cast(Any, variant), entries[variant.name], committed.get(variant.name), exact=_is_exact(variant)
        )
    ]


def _is_exact(variant: Variant) -> bool:
    """Whether a variant is of the one integer linear that multiplies and adds at once, by a power of two."""
    return variant.kernel.name == "linear_w4a8"


def read() -> dict[str, dict[str, Entry]]:
    """The committed table."""
    return json.loads(TABLE.read_text())["archs"]


def write(table: dict[str, dict[str, Entry]]) -> None:
    """Write the table, an entry a line."""
    lines = [
        f"  {json.dumps(arch)}: {{\n"
        + ",\n".join(f"   {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
        + "\n  }"
        for arch, entries in table.items()
    ]
    version = ".".join(map(str, _nvrtc.version()))
    head = f'{{\n "nvrtc": {json.dumps(version)},\n "archs": {{\n'
    TABLE.write_text(head + ",\n".join(lines) + "\n }\n}\n")


def main() -> int:
    """Write the table, or compare with it; the number of faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with the table and leave it as it is")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    table = {str(arch): build(arch, arguments.jobs) for arch in ARCHS}
    committed = read() if arguments.check else table
    found = [fault for arch in ARCHS for fault in wrong(arch, table[str(arch)], committed[str(arch)])]
    print("\n".join(found) or f"{sum(map(len, table.values()))} kernels, nothing wrong")
    if not arguments.check:
        write(table)
    return len(found)


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
