"""Compiles every variant of every Triton op for every architecture, without a GPU, and tabulates it.

    python -m tests.gpu.build_table           # writes docs/results/gpu_build_triton.json, or with --ops part
    python -m tests.gpu.build_table --check   # fails where something is worse than what is committed

An entry holds registers a thread, bytes of local memory (`stack`) and of shared memory, the number of
instructions, how often those opcodes occur that say how a kernel works, how often inner loops touch local
memory (`local_in_loops`), and what a turn of the longest loop around matrix units issues (`loop`).
"""

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qspec_kernels.backends import triton as backend
from qspec_kernels.backends.triton._variants import ARCHS, Variant
from tests.gpu.loops import Instruction, inner_loops, instructions

TABLE = Path(__file__).parents[2] / "docs" / "results" / "gpu_build_triton.json"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# Matrix units by their full names, since shape and type are part of what must not change; the others without
# modifiers: copies into shared memory that run ahead, local memory, shuffles.
MATRIX_UNITS = ("HMMA", "IMMA", "HGMMA", "IGMMA", "UTCHMMA", "UTCIMMA")
LOCAL = ("LDL", "STL")
# what adds to memory in any order that comes; Blackwell's kernels allocate memory with other ones
ATOMICS = ("ATOM", "ATOMG", "RED", "REDG")
# products and sums that are rounded once: those of the source, and what division and exponentials are made of
FUSED = ("FFMA", "FFMA2")
COUNTED = ("LDGSTS", *LOCAL, "SHFL", *FUSED, *ATOMICS)
# of the registers, and of the instructions of a turn, that are committed
ALLOWED = 1.1
# linears that sum integers and then round each product and each sum
INTEGER_LINEAR = re.compile(r"linear_\w+a[48](_prefill)?\b")

Entry = dict[str, Any]
Table = dict[str, dict[str, Entry]]


def ops() -> list[str]:
    """The ops that the Triton backend has files for."""
    names = (module.name for module in pkgutil.iter_modules(backend.__path__))
    return sorted(name for name in names if not name.startswith("_"))


def variants(op: str, arch: int) -> list[Variant]:
    """What an op compiles for an architecture."""
    return list(importlib.import_module(f"{backend.__name__}.{op}").variants(arch))


def compile_variant(variant: Variant, arch: int) -> Entry:
    """One entry of the table."""
    names = variant.kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible}
    source = ASTSource(variant.kernel, signature, dict(variant.constexprs), attributes)
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=variant.options())
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        listing = subprocess.run(
            [TOOLS / "cuobjdump", "-sass", "-res-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
    return entry_of(listing, built.metadata.shared)


def entry_of(listing: str, shared: int) -> Entry:
    """An entry from what cuobjdump says about a cubin."""
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing)
    assert usage, listing[:1000]
    code = instructions(listing)
    loops = list(inner_loops(code, MATRIX_UNITS))
    inner = {one for loop in loops for one in loop}
    opcodes, found = [one.opcode for one in code], Counter()
    for opcode in opcodes:
        stem = stem_of(opcode)
        if stem in MATRIX_UNITS:
            found[opcode] += 1
        elif stem in COUNTED:
            found[stem] += 1
    registers, stack, local = map(int, usage.groups())
    return {
        "registers": registers,
        "stack": stack + local,
        "shared": shared,
        "instructions": len(opcodes) - opcodes.count("NOP"),
        "opcodes": dict(sorted(found.items())),
        "local_in_loops": sum(one.stem in LOCAL for one in inner),
        "loop": max(map(_turn, loops), key=lambda turn: turn["instructions"], default=_turn([])),
    }


def _turn(loop: list[Instruction]) -> Entry:
    """Instructions of a turn of a loop and its matrix units; none of a loop that has no matrix unit."""
    units = Counter(one.opcode for one in loop if one.stem in MATRIX_UNITS)
    count = sum(one.stem != "NOP" for one in loop) if units else 0
    return {"instructions": count, "opcodes": dict(sorted(units.items()))}


def stem_of(opcode: str) -> str:
    """An opcode without its modifiers."""
    return opcode.partition(".")[0]


def faults(variant: Variant, entry: Entry, committed: Entry | None, *, exact: bool = False) -> Iterator[str]:
    """What is wrong with an entry, by itself and against the committed one.

    `exact` says that the source fuses products and sums of an integer linear where that rounds nothing.
    """
    if entry["stack"]:
        yield f"{entry['stack']} bytes of local memory"
    if entry["local_in_loops"]:
        yield f"{entry['local_in_loops']} instructions on local memory in inner loops"
    stems = set(map(stem_of, entry["opcodes"]))
    yield from (f"no {opcode}" for opcode in variant.opcodes if opcode not in stems)
    yield from (f"{opcode}: sums of no fixed order" for opcode in ATOMICS if opcode in stems)
    if INTEGER_LINEAR.match(variant.name) and not exact:
        yield from (f"{opcode}: a rounding is left out" for opcode in FUSED if opcode in stems)
    if committed is None:
        yield "not in the table; run python -m tests.gpu.build_table"
        return
    if entry["registers"] > committed["registers"] * ALLOWED:
        yield f"{entry['registers']} registers, {committed['registers']} in the table"
    if entry["stack"] > committed["stack"]:
        yield f"{entry['stack']} bytes of local memory, {committed['stack']} in the table"
    if entry["shared"] > committed["shared"]:
        yield f"{entry['shared']} bytes of shared memory, {committed['shared']} in the table"
    turn, turns = (one["loop"]["instructions"] for one in (entry, committed))
    if turn > turns * ALLOWED:
        yield f"{turn} instructions in a turn of the loop, {turns} in the table"
    found, before = Counter(entry["opcodes"]), Counter(committed["opcodes"])
    units, expected = (
        [one for one in sorted(some) if stem_of(one) in MATRIX_UNITS] for some in (found, before)
    )
    if units != expected:
        yield f"{' '.join(units)}, in the table {' '.join(expected)}"
    worse = [opcode for opcode in FUSED if found[opcode] > before[opcode]]
    worse += ["LDGSTS"] if found["LDGSTS"] < before["LDGSTS"] else []
    yield from (f"{found[opcode]} {opcode}, {before[opcode]} in the table" for opcode in worse)


def _built(task: tuple[str, int]) -> dict[str, Entry]:
    op, arch = task
    return {variant.name: compile_variant(variant, arch) for variant in variants(op, arch)}


def build(tasks: list[tuple[str, int]], jobs: int) -> Table:
    """Entries by architecture and variant, of pairs of op and architecture."""
    table: Table = {str(arch): {} for _, arch in tasks}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for (_, arch), entries in zip(tasks, pool.map(_built, tasks), strict=True):
            table[str(arch)] |= entries
    return table


def read() -> Table:
    """The committed table."""
    return json.loads(TABLE.read_text())["archs"]


def merged(old: Table, new: Table, tasks: list[tuple[str, int]]) -> Table:
    """The old table with the entries of those ops and architectures replaced by the new ones."""
    kept = {
        arch: {
            name: entry for name, entry in entries.items() if (name.split()[0], int(arch)) not in set(tasks)
        }
        for arch, entries in old.items()
    }
    archs = sorted({*old, *new}, key=int)
    return {arch: dict(sorted((kept.get(arch, {}) | new.get(arch, {})).items())) for arch in archs}


def write(table: Table) -> None:
    """Write the table, an entry a line."""
    lines = [
        f"  {json.dumps(arch)}: {{\n"
        + ",\n".join(f"   {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
        + "\n  }"
        for arch, entries in table.items()
    ]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    head = f'{{\n "triton": {json.dumps(triton.__version__)},\n "archs": {{\n'
    TABLE.write_text(head + ",\n".join(lines) + "\n }\n}\n")


def main() -> int:
    """Write the table, or compare with it; the number of faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with the table and leave it as it is")
    parser.add_argument("--archs", type=int, nargs="+", default=ARCHS, choices=ARCHS)
    parser.add_argument("--ops", nargs="+", default=ops(), choices=ops())
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    tasks = [(op, arch) for arch in options.archs for op in options.ops]
    table = build(tasks, options.jobs)
    committed = read() if options.check else table
    wrong = [
        f"sm_{arch} {variant.name}: {fault}"
        for op, arch in tasks
        for variant in variants(op, arch)
        for fault in faults(variant, table[str(arch)][variant.name], committed[str(arch)].get(variant.name))
    ]
    print("\n".join(wrong) or f"{sum(map(len, table.values()))} variants, nothing wrong")
    if not options.check:
        write(merged(read() if TABLE.exists() else {}, table, tasks))
    return len(wrong)


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
