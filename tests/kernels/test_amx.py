"""The AMX kernels on a CPU without AMX: the same sources, with the tile instructions emulated.

The tests of the linears run here once more, against the emulation. On a CPU with AMX the same tests run on
the instructions themselves wherever the `backend` is "amx".
"""

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qspec_kernels as qk
from qspec_kernels import dispatch
from qspec_kernels.backends.cpp import library
from tests.conftest import use_backend
from tests.kernels import test_linear, test_rescore, test_row_invariance
from tests.kernels.cases import quantized, same_bits
from tests.kernels.test_bad_input import test_odd_groups_that_they_can_hold_are_right  # noqa: F401
from tests.kernels.test_bounds import test_operations_are_counted  # noqa: F401
from tests.kernels.test_fused import test_residual_of_linears  # noqa: F401
from tests.kernels.test_linear import (  # noqa: F401
    test_dense,
    test_integers_equal_their_definition,
    test_integers_of_any_shape,
    test_leading_dimensions_and_strides,
    test_long_rows_with_one_scale,
    test_nan_stays_in_its_row,
    test_weight_only,
)
from tests.kernels.test_mxfp4_scales import (  # noqa: F401
    test_least_scales_of_mxfp4,
    test_nan_scale_of_mxfp4,
    test_one_scale_of_mxfp4_changes_no_other_row,
    test_products_near_the_least_floats,
)
from tests.kernels.test_rescore import (  # noqa: F401
    test_any_shape,
    test_definition,
    test_rows_do_not_depend_on_each_other,
)
from tests.kernels.test_row_invariance import test_linears  # noqa: F401

pytestmark = pytest.mark.usefixtures("poisoned", "threads")

SOURCES = Path(library.__file__).parent
EMULATION = Path(__file__).parent / "emulated_tiles.hpp"
EMULATED = ['-DQSPEC_SOURCE_HASH="none"', f'-DQSPEC_EMULATED_TILES="{EMULATION}"']
FLAGS = [
    *("-std=c++20", "-O1", "-fPIC", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti"),
    *("-fvisibility=hidden", "-w"),
    *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"),
    "-mavx512bf16",
]
SERVED = {
    *("linear_bf16", "linear_w4a16", "linear_w4a8", "linear_w4a4", "linear_mxfp4a16", "linear_mxfp4a8"),
    *("rescore", "compute_pass"),
}
FILES = [*(SERVED - {"compute_pass"}), "bounds", "pool", "tile_permission"]


@pytest.fixture(scope="module")
def emulation(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels that use tiles, compiled against the emulation."""
    built = tmp_path_factory.mktemp("amx")

    def compiled(name: str) -> Path:
        path = built / f"{name}.o"
        command = [compiler, *FLAGS, *EMULATED, "-c", str(SOURCES / f"{name}.cpp"), "-o", str(path)]
        subprocess.run(command, check=True)
        return path

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, FILES))
    path = built / "qspec_amx_emulated.so"
    subprocess.run([compiler, "-shared", "-pthread", *map(str, objects), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """Linears are served by the emulation, everything else by the library of avx512bf16."""
    use_backend("avx512bf16", monkeypatch)
    emulation, real = request.getfixturevalue("emulation"), library.function

    def function(name: str) -> Any:
        if name not in SERVED:
            return real(name)
        kernel = emulation[f"qspec_recorded_{name}"]
        kernel.argtypes, kernel.restype = [ctypes.c_void_p], ctypes.c_int
        return kernel

    monkeypatch.setattr(library, "function", function)
    yield emulation
    set_mutant(emulation, 0)
    monkeypatch.undo()
    dispatch.reset()


@pytest.fixture
def backend(emulated: ctypes.CDLL) -> str:
    """What the tests that are run once more ask for."""
    return "emulated amx"


@pytest.fixture
def native(emulated: ctypes.CDLL) -> None:
    """What the tests of the bounds ask for."""


@pytest.fixture(params=["emulated", "amx"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The emulation, and where the CPU has them the tiles themselves."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
    else:
        use_backend("amx", monkeypatch)
    yield
    monkeypatch.undo()
    dispatch.reset()


def set_mutant(emulation: ctypes.CDLL, number: int) -> None:
    ctypes.c_int.in_dll(emulation, "qspec_emulated_mutant").value = number


def spread(rng: torch.Generator, m: int, k: int) -> torch.Tensor:
    """Rows of values so far apart that every addition rounds; sums of small integers hardly would."""
    return torch.randn(m, k, generator=rng) * 2.0 ** torch.randint(-12, 12, (m, k), generator=rng)


# Three and four blocks of rows of x beside a tile, seven that take turns, and thirty-four that do for dense
# weights alone; a panel of dense weights; for all, more than a panel of rows of x and of weight rows. The
# last of each is not full; several parts of K; groups that end inside a step and a last one that is shorter.
MANY_ROWS = [
    (33, 700, 300),
    (64, 700, 290),
    (103, 700, 70),
    (530, 40, 70),
    (230, 2100, 40),
    (545, 1100, 290),
]


@pytest.mark.parametrize(("m", "k", "n"), MANY_ROWS)
def test_many_rows(tiles, rng, m, k, n):
    x, weight = spread(rng, m, k), torch.randn(n, k, generator=rng)
    rounded = weight.bfloat16()
    linears = [lambda x: qk.linear(x, rounded)]
    for kind, group, act in [
        ("int4", 96, "a16"),
        ("int4", -1, "a8"),
        ("int4", 40, "a4"),
        ("mxfp4", 32, "a16"),
        ("mxfp4", 32, "a8"),
    ]:
        packed = quantized(kind, weight, group).packed
        linears.append(lambda x, w=packed, act=act: qk.linear(x, w, act=act))
    for number in (1, 2):
        torch.set_num_threads(number)
        for linear in linears:
            whole = linear(x)
            for row in {*(r for r in (0, 15, 16, 31, 32, 47, 48, 63, 64, 79) if r < m), m - 1}:
                assert same_bits(linear(x[row : row + 1]), whole[row : row + 1])


@given(
    m=st.integers(9, 40),
    k=st.integers(1, 300),
    n=st.integers(1, 70),
    group=st.sampled_from([8, 24, 32, 40, 72, 128, -1]),
    bits=st.sampled_from([4, 8]),
)
def test_tiles_and_vectors_give_the_same_integers(tiles, rng, m, k, n, group, bits):
    x, bias, residual = (torch.randn(m, width, generator=rng) for width in (k, n, n))
    packed = quantized("int4", torch.randn(n, k, generator=rng), group).packed
    activation = qk.quantize_act(x, bits=bits, group_size=packed.group_size if bits == 4 else None)
    whole = qk.linear(activation, packed, bias[0], residual=residual)
    for first in range(0, m, 8):
        some = slice(first, first + 8)
        part = replace(activation, codes=activation.codes[some], scales=activation.scales[some])
        assert same_bits(qk.linear(part, packed, bias[0], residual=residual[some]), whole[some])


def test_registers_are_given_back(emulated, rng):
    x, weight = torch.randn(20, 100, generator=rng), torch.randn(70, 100, generator=rng)
    packed = quantized("int4", weight, 32).packed
    qk.linear(x, weight.bfloat16())
    for act in ("a16", "a8"):
        qk.linear(x, packed, act=act)
    logits = torch.randn(20, 70, generator=rng)
    qk.rescore(logits, x, weight.bfloat16(), count=3)
    assert emulated.qspec_emulated_in_use() == 0


def _dense(rng):
    test_linear.test_dense(None, rng, (17, 300, 70), torch.float32, torch.bfloat16)


def _weight_only(rng):
    test_linear.check_weight_only(rng, (17, 300, 70), torch.float32, "int4", 32)


def _integers(rng):
    test_linear.check_integers(rng, (17, 300, 70), "mxfp4", 32, "a8")


def _rows(op, rng):
    x = spread(rng, 65, 300)
    test_row_invariance.check_rows(test_row_invariance.linears(rng, 300, 33)[op], x)


def _rescored(rng):
    test_rescore.check(rng, 17, 37, 100, 32, 1000)


CHECKS: dict[str, Callable[[torch.Generator], None]] = {
    "dense": _dense,
    "weight_only": _weight_only,
    "integers": _integers,
    "rows of bf16": partial(_rows, "bf16"),
    "rows of int4 a16": partial(_rows, "int4 128 a16"),
    "rescore": _rescored,
}
EXCHANGED_PAIRS, MISSING_LAST_ROW, ORDER_BY_SHAPE = 1, 2, 3


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (EXCHANGED_PAIRS, "dense"),
        (EXCHANGED_PAIRS, "weight_only"),
        (EXCHANGED_PAIRS, "integers"),
        (MISSING_LAST_ROW, "dense"),
        (MISSING_LAST_ROW, "weight_only"),
        (MISSING_LAST_ROW, "integers"),
        (ORDER_BY_SHAPE, "rows of bf16"),
        (ORDER_BY_SHAPE, "rows of int4 a16"),
        (ORDER_BY_SHAPE, "rescore"),
    ],
)
def test_wrong_instructions_are_noticed(emulated, rng, mutant, check):
    CHECKS[check](rng)
    set_mutant(emulated, mutant)
    with pytest.raises(AssertionError):
        CHECKS[check](rng)
