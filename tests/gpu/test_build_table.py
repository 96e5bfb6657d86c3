"""The committed table of what Triton's kernels compile to, and what it must show."""

import re
from collections import defaultdict
from dataclasses import replace

import pytest

pytest.importorskip("triton")

from qspec_kernels.backends.triton._interpreter import INTERPRETED
from qspec_kernels.backends.triton._tiles import SHARED
from qspec_kernels.backends.triton._variants import ARCHS, Variant
from tests.gpu import build_table

pytestmark = pytest.mark.skipif(bool(INTERPRETED), reason="kernels are interpreted in this process")

# ops compiled here and now, for one architecture and their first variant; .ci/run does them all
SAMPLED = ["linear_w4a16", "linear_mxfp4a8", "rmsnorm"]
FLOAT_LINEARS = ["linear_bf16", "linear_w4a16", "linear_mxfp4a16"]
PREFILLS = [op for op in build_table.ops() if op.endswith("_prefill")]


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, build_table.Entry]]:
    """The committed table."""
    return build_table.read()


@pytest.mark.parametrize("arch", ARCHS)
def test_every_variant_is_in_the_table_and_nothing_else(table, arch):
    listed = [variant for op in build_table.ops() for variant in build_table.variants(op, arch)]
    names = [variant.name for variant in listed]
    assert all(entry["shared"] <= SHARED[arch] for entry in table[str(arch)].values())
    assert len(names) == len(set(names))
    assert set(names) == set(table[str(arch)])
    wrong = {
        variant.name: list(build_table.faults(variant, table[str(arch)][variant.name], None))[:-1]
        for variant in listed
    }
    assert not {name: faults for name, faults in wrong.items() if faults}


@pytest.mark.parametrize("op", SAMPLED)
def test_a_variant_is_no_worse_than_its_entry(table, op):
    variant = build_table.variants(op, 90)[0]
    entry = build_table.compile_variant(variant, 90)
    assert list(build_table.faults(variant, entry, table["90"][variant.name])) == []


@pytest.mark.parametrize("op", FLOAT_LINEARS + [f"{op}_prefill" for op in FLOAT_LINEARS])
@pytest.mark.parametrize("arch", ARCHS)
def test_tokens_do_not_choose_the_instruction(table, op, arch):
    """Float sums depend on the instruction: tiles of any number of tokens use one, wide as they are."""
    used = defaultdict(set)
    for variant in build_table.variants(op, arch):
        units = build_table.MATRIX_UNITS
        for opcode in table[str(arch)][variant.name]["opcodes"]:
            if opcode.partition(".")[0] in units:
                used[variant.name.partition(" m=")[0]].add(re.sub(r"\.64x\d+x", ".64xNx", opcode))
    assert used
    assert all(len(opcodes) == 1 for opcodes in used.values()), dict(used)


@pytest.mark.parametrize("op", PREFILLS)
@pytest.mark.parametrize(("arch", "floats", "integers"), [(90, "HGMMA", "IGMMA"), (100, "UTCHMMA", "IMMA")])
def test_prefills_use_the_widest_instructions(table, op, arch, floats, integers):
    wanted = integers if op.endswith(("a8_prefill", "a4_prefill")) else floats
    found = list(build_table.variants(op, arch))
    assert found
    for variant in found:
        opcodes = {opcode.partition(".")[0] for opcode in table[str(arch)][variant.name]["opcodes"]}
        assert opcodes & set(build_table.MATRIX_UNITS) == {wanted}, variant.name


VARIANT = Variant("some", None, {}, {}, opcodes=("HMMA",))
ENTRY = {
    "registers": 100,
    "stack": 0,
    "shared": 1024,
    "instructions": 9,
    "opcodes": {"FFMA": 8, "HMMA.16816.F32.BF16": 4, "LDGSTS": 2},
    "local_in_loops": 0,
    "loop": {"instructions": 50, "opcodes": {"HMMA.16816.F32.BF16": 4}},
}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"registers": 110}, None),
        ({"registers": 111}, "111 registers, 100 in the table"),
        ({"stack": 8}, "8 bytes of local memory"),
        ({"local_in_loops": 2}, "2 instructions on local memory in inner loops"),
        ({"loop": {"instructions": 55}}, None),
        ({"loop": {"instructions": 56}}, "56 instructions in a turn of the loop, 50 in the table"),
        ({"opcodes": {"LDGSTS": 2}}, "no HMMA"),
        ({"opcodes": ENTRY["opcodes"] | {"REDG": 1}}, "REDG: sums of no fixed order"),
        ({"shared": 512}, None),
        ({"shared": 1025}, "1025 bytes of shared memory, 1024 in the table"),
        ({"opcodes": ENTRY["opcodes"] | {"LDGSTS": 3, "FFMA": 7, "HMMA.16816.F32.BF16": 2}}, None),
        ({"opcodes": ENTRY["opcodes"] | {"LDGSTS": 1}}, "1 LDGSTS, 2 in the table"),
        ({"opcodes": ENTRY["opcodes"] | {"FFMA": 9}}, "9 FFMA, 8 in the table"),
        ({"opcodes": ENTRY["opcodes"] | {"FFMA2": 1}}, "1 FFMA2, 0 in the table"),
        (
            {"opcodes": {"FFMA": 8, "HMMA.1688.F32.BF16": 8, "LDGSTS": 2}},
            "HMMA.1688.F32.BF16, in the table HMMA.16816.F32.BF16",
        ),
        (
            {"opcodes": ENTRY["opcodes"] | {"HMMA.1688.F32.BF16": 1}},
            "HMMA.16816.F32.BF16 HMMA.1688.F32.BF16, in the table HMMA.16816.F32.BF16",
        ),
    ],
)
def test_worse_entries_are_found(change, fault):
    found = list(build_table.faults(VARIANT, ENTRY | change, ENTRY))
    assert found[:1] == ([fault] if fault else [])


def test_integer_linears_are_known_by_their_names():
    found = {op for op in build_table.ops() if build_table.INTEGER_LINEAR.match(f"{op} some")}
    stems = {"linear_w4a8", "linear_w4a4", "linear_mxfp4a8"}
    assert found == stems | {f"{stem}_prefill" for stem in stems if f"{stem}_prefill" in PREFILLS}
    assert len(found) > len(stems)


@pytest.mark.parametrize("opcode", ["FFMA", "FFMA2"])
def test_integer_linears_fuse_nothing(opcode):
    """Not even as many as the table has."""
    entry = ENTRY | {"opcodes": {"HMMA.16816.F32.BF16": 4, opcode: 2}}
    for op in ("linear_w4a8", "linear_mxfp4a8_prefill"):
        variant = replace(VARIANT, name=f"{op} g128")
        assert list(build_table.faults(variant, entry, entry)) == [f"{opcode}: a rounding is left out"]
        assert not list(build_table.faults(variant, entry, entry, exact=True))
    assert not list(build_table.faults(replace(VARIANT, name="linear_w4a16 g128"), entry, entry))


def test_rebuilding_an_op_leaves_the_others():
    old = {"80": {"rope a": 1, "rmsnorm a": 1, "rmsnorm gone": 1}, "90": {"rmsnorm a": 1}}
    new = {"80": {"rmsnorm a": 2}}
    assert build_table.merged(old, new, [("rmsnorm", 80)]) == {
        "80": {"rope a": 1, "rmsnorm a": 2},
        "90": {"rmsnorm a": 1},
    }


def test_a_variant_without_an_entry_is_found():
    assert "not in the table" in next(build_table.faults(VARIANT, ENTRY, None))


def test_listings_are_read():
    listing = """
 Function kernel:
  REG:40 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:432 TEXTURE:0 SURFACE:0 SAMPLER:0
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R5], [R2.64] ;
        /*0020*/               @P1 STL [R1], R4 ;
        /*0030*/                   HMMA.16816.F32.BF16 R8, R4, R2, R8 ;
        /*0040*/                   REDG.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R4 ;
        /*0050*/                   NOP ;
"""
    assert build_table.entry_of(listing, 2048) == {
        "registers": 40,
        "stack": 16,
        "shared": 2048,
        "instructions": 5,
        "opcodes": {"HMMA.16816.F32.BF16": 1, "LDGSTS": 1, "REDG": 1, "STL": 1},
        "local_in_loops": 0,
        "loop": {"instructions": 0, "opcodes": {}},
    }
