"""Every CUDA source is launched, compiled for its architectures, and wrong in ways that its checks see."""

from collections import defaultdict
from itertools import product
from pathlib import Path

import pytest
import torch

from qspec_kernels.backends.cuda import _fragments, _launch
from tests.gpu import build_table_cuda
from tests.gpu.emulation.cases import LAUNCHERS, SCHEDULES, check, check_rotation, emulated
from tests.gpu.emulation.run import BuildError, EmulationError

Edit = tuple[str, str]

RING = ("barrier();  // the slab has landed", ";  // the slab has landed")
TAIL_OF_X = ("copy16(to, row + k, k < in.k);", "copy16(to, row + k, true);")
TAIL_OF_N = ("row < n && token < m) store", "token < m) store")
TAIL_OF_M = ("t >= kTokens || t >= tokens", "t >= kTokens")
TAIL_OF_GROUPS = ("const int count = left < kTermUnits ? left : kTermUnits;", "const int count = kTermUnits;")
LAST_TERMS = ("barrier();  // the last terms are there", "")
LAST_SUMS = ("barrier();  // the last sums are there", "")
# a slab is used one stage before it has landed
WAIT = ("wait_for_copies<STAGES - 2>();", "wait_for_copies<STAGES - 1>();")

# for each source: which element is whose, who waits for whom, where it ends
MUTANTS: dict[str, dict[str, list[Edit]]] = {
    "linear_w4a8": {
        "index": [("words.word[2 * step + h]", "words.word[step + 2 * h]")],
        "barrier": [RING],
        "tail": [TAIL_OF_X],
    },
    "linear_mxfp4a8": {
        "index": [("0x5140u", "0x1504u")],
        "barrier": [LAST_TERMS],
        "tail": [TAIL_OF_GROUPS],
    },
    "linear_w4a4": {
        "index": [("x[2 * half + 1] << 4", "x[2 * (1 - half) + 1] << 4")],
        "barrier": [LAST_TERMS],
        "tail": [TAIL_OF_M],
    },
    "linear_w4a16": {
        "index": [("a[q][2 + h] = pair(bytes, 0x4342u)", "a[q][2 + h] = pair(bytes, 0x4243u)")],
        "barrier": [RING],
        "tail": [TAIL_OF_N],
    },
    "linear_mxfp4a16": {
        "index": [("a[0][2 * half + h]", "a[0][half + 2 * h]")],
        "barrier": [LAST_SUMS],
        "tail": [TAIL_OF_X],
    },
    "hadamard_quantize_act": {
        "index": [
            ("v[i + stride] = sub(a, b);", "v[i + stride] = sub(b, a);"),
            ("(item >> kBefore << (kBefore + bits_of(kPass)))", "(item >> kBefore << kBefore)"),
            ("(place(first) ^ (to & 28)) + (to & ~28u)", "place(first) + to"),
        ],
        "barrier": [
            ("barrier();  // the next stage reads what others have written", ""),
            ("barrier();  // the rotated row is there", ""),
        ],
        "tail": [("(g + 1) * GROUP_SIZE < WIDTH ? (g + 1) * GROUP_SIZE : WIDTH", "(g + 1) * GROUP_SIZE")],
    },
    # one warp a block, and whole matrices: an instruction waits for all that its barrier does
    "fragments": {
        "index": [
            ("mma_s8(c, a, b[0], b[1])", "mma_s8(c, a, b[1], b[0])"),
            ("load_matrices(r, row)", "load_matrices(r, shared_memory() + lane * 16)"),
        ],
        "tail": [("kDigits = 3", "kDigits = 2")],
    },
}
# what is no op: it asks the hardware
PROBES = {"fragments"}
EDITS = [(name, edit) for name, kinds in MUTANTS.items() for edits in kinds.values() for edit in edits]


def run(name: str, rng: torch.Generator) -> None:
    """An op's check, on a shape with tails; of a probe, that the answers are what kernels rely on."""
    if name == "fragments":
        for instruction in _fragments.INSTRUCTIONS:
            answers = _fragments.asked(instruction, torch.device("cpu"))
            assert torch.equal(answers, _fragments.assumed(instruction)), instruction
    elif name == "hadamard_quantize_act":
        check_rotation(1280, 640, 96, torch.float32, rng)
    else:
        check(name, (5, 304, 37), 32, rng)


def is_seen(name: str, edit: Edit, rng: torch.Generator) -> bool:
    """Whether some schedule shows that an edited source is wrong."""
    for schedule in SCHEDULES:
        with emulated(edits=[edit], **schedule):
            try:
                run(name, rng)
            except (AssertionError, EmulationError):
                return True
    return False


@pytest.mark.parametrize(("name", "edit"), EDITS)
def test_mutants_fail(rng, name, edit):
    """A wrong index of a fragment, a missing barrier, a tail that is not cut off."""
    assert is_seen(name, edit, rng)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_shape_of_the_mutants_is_right_without_them(rng, name):
    for schedule in SCHEDULES:
        with emulated(**schedule):
            run(name, rng)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("text of an older source", ""), "occurs 0 times"),
        (("barrier();", ""), r"occurs \d\d? times"),
        (("KERNEL(kThreads, 1)", "KERNEL(kThreads, 1) no type"), "error: "),
    ],
)
def test_what_is_no_kernel_is_no_mutant(rng, edit, message):
    with pytest.raises(BuildError, match=message):
        is_seen("linear_w4a8", edit, rng)


@pytest.mark.parametrize("name", ["linear_w4a8", "linear_w4a16"])
def test_a_wait_for_too_few_copies_is_seen_where_they_land_late(rng, name):
    with emulated(edits=[WAIT], late=False):
        run(name, rng)
    with emulated(edits=[WAIT], late=True), pytest.raises(AssertionError):
        run(name, rng)


def test_every_source_is_launched_and_has_mutants():
    sources = {path.stem for path in Path(_launch.__file__).parent.glob("*.cu")}
    assert sources == {*LAUNCHERS, *PROBES} == set(MUTANTS)
    for name, kinds in MUTANTS.items():
        assert {*kinds, *(["barrier"] if name in PROBES else [])} == {"index", "barrier", "tail"}, name
        assert all(kinds.values()), name


def test_the_table_has_every_source_where_it_serves():
    table = build_table_cuda.read()
    for arch in build_table_cuda.ARCHS:
        served = {
            name
            for name, module in LAUNCHERS.items()
            if not hasattr(module, "why_not") or not module.why_not(divmod(arch, 10))
        }
        assert {entry.split()[0] for entry in table[str(arch)]} == served | PROBES


@pytest.mark.parametrize("arch", build_table_cuda.ARCHS)
def test_every_type_and_alignment_of_operands_is_compiled(arch):
    found = defaultdict(set)
    for variant in build_table_cuda.variants(arch):
        if variant.kernel.name in PROBES:
            continue
        constants = dict(variant.kernel.constants)
        kind = constants.get("BF16_OUT", constants.get("BF16"))
        found[variant.kernel.name].add((kind, constants["ALIGNED"]))
    for name, kinds in found.items():
        types = (None,) if name.endswith(("a8", "a4")) else (0, 1)
        assert kinds == set(product(types, (0, 1))), name
