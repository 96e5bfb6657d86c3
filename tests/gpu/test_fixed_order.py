"""Sums over a row have an order of their own, whatever layout the compiler chooses: each reduction is of two.

That is why a fused op equals the composition of its parts on a GPU too, where the interpreter shows nothing.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from qspec_kernels.backends.triton import (  # noqa: E402
    hadamard,
    hadamard_quantize_act,
    rescore,
    rmsnorm,
    rmsnorm_quantize_act,
    rope_cache_write,
)
from qspec_kernels.backends.triton._variants import Variant  # noqa: E402

BACKENDS = Path(hadamard.__file__).parents[1]
SOURCES = sorted([*BACKENDS.glob("cuda/*.cu*"), *BACKENDS.glob("triton/*.py")])
# Triton's, CUDA's and PTX's; "atomically" is how files are written
ATOMIC = re.compile(r"atomic_|atomic[A-Z]|\b(?:atom|red)\.|\batom_|fetch_add")

REDUCTION = re.compile(
    r'"tt\.reduce"\([^)]*\) <\{axis = (\d+) : i32\}> \(\{(.*?)\}\) : \(tensor<([\dx]+)x', re.DOTALL
)


def intermediate(variant: Variant, stage: str = "ttir") -> str:
    """Triton's own representation of a kernel, before ("ttir") or after ("ttgir") it has layouts."""
    names = variant.kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible}
    source = ASTSource(variant.kernel, signature, dict(variant.constexprs), attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=variant.options()).asm[stage]


def float_sums(text: str) -> Iterator[int]:
    """The numbers of terms of the reductions that add floats."""
    for axis, body, shape in REDUCTION.findall(text):
        if "arith.addf" in body:
            yield int(shape.split("x")[int(axis)])


def first(module, *words: str) -> Variant:
    return next(variant for variant in module.variants(90) if all(word in variant.name for word in words))


@pytest.mark.parametrize(
    ("module", "words", "sums"),
    [
        (rmsnorm, ("bf16 4096",), 12),
        (rmsnorm_quantize_act, ("bf16 4096", "a8"), 12),
        (rope_cache_write, ("bf16", "normed"), 7),
        (rescore, ("products bf16",), 10),
        (hadamard, ("fp32 128",), 0),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else None,
)
def test_floats_are_added_in_pairs(module, words, sums):
    terms = list(float_sums(intermediate(first(module, *words))))
    # a scalar out of a tensor of one is a sum as well
    assert [count for count in terms if count > 1] == [2] * sums


def matrix_units(text: str) -> tuple[list[str], list[str]]:
    """How matrix instructions are laid out, and the shapes and types that they are given."""
    layouts = re.findall(r"#ttg\.nvidia_mma<(.*?)>", text)
    dots = re.findall(r"warp_group_dot %.* : (.*) loc", text)
    return sorted(layouts), [re.sub("#[a-z]+[0-9]*", "#", dot) for dot in dots]


def test_the_fused_rotation_uses_the_same_matrix_instructions():
    plain, fused = (
        matrix_units(intermediate(first(module, "fp32 4096"), "ttgir"))
        for module in (hadamard, hadamard_quantize_act)
    )
    assert plain == fused
    assert len(plain[1]) == 3


@triton.jit
def _in_any_order(out, x):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, 64)), 0))


def test_a_plain_sum_is_noticed():
    signature = {"out": "*fp32", "x": "*fp32"}
    assert list(float_sums(intermediate(Variant("", _in_any_order, signature, {})))) == [64]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_added_atomically(path):
    assert not ATOMIC.search(path.read_text())


@pytest.mark.parametrize(
    "line",
    [
        "tl.atomic_add(out + rows, partial)",
        "atomicAdd(out + row, partial);",
        'asm volatile("red.global.add.f32 [%0], %1;" :: "l"(p), "f"(v));',
        'asm volatile("atom.global.add.f32 %0, [%1], %2;" : "=f"(d) : "l"(p), "f"(v));',
        "__nv_atomic_fetch_add(p, v, 0, 3);",
    ],
)
def test_an_atomic_sum_is_noticed(line):
    assert len(SOURCES) > 60
    assert ATOMIC.search(line)
