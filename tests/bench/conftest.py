"""Kernels under pytest-benchmark: `python -m pytest tests/bench --benchmark-only` times them on the shapes of
real models; otherwise each runs once, on a tiny one, and only what it computes counts."""

from collections.abc import Iterator
from typing import Any

import pytest

import qspec_kernels
from qspec_decode.bench import linear_case, op_case
from qspec_decode.bench.kernels import ROWS, SHAPES
from qspec_decode.bench.peaks import many_rows_bytes, rotation_bytes
from qspec_decode.bench.shapes import MODELS, ModelShape
from tests.bench.standin import device, mutate, small

# fixtures of the tests of `qspec bench gpu`
__all__ = ["device", "mutate", "small"]

TINY = ModelShape("tiny", hidden=256, intermediate=384, heads=4, kv_heads=2, head_dim=64, vocab=300)
# more than one copy of each weight
TINY_BYTES = 1 << 20


def pytest_configure(config: pytest.Config) -> None:
    """`--benchmark-only` asks for timing, whatever the configuration's default."""
    if getattr(config.option, "benchmark_only", False):
        config.option.benchmark_disable = False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Shapes and rows of real models where something is timed."""
    timed = not metafunc.config.option.benchmark_disable
    models = [MODELS[name] for name in SHAPES] if timed else [TINY]
    for name, values in (
        ("linears", [linear for model in models for linear in model.linears.values()]),
        ("others", models),
    ):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=lambda shape: shape.name, indirect=True, scope="module")
            metafunc.parametrize("rows", ROWS if timed else (1, 5), ids="m{}".format, scope="module")


def make(case: Any, request: pytest.FixtureRequest, ops: tuple[str, ...]) -> Iterator[Any]:
    """A case of `qspec bench kernels`, over memory enough to time it or little enough to test it."""
    if qspec_kernels.isa() == "torch":
        pytest.skip("there are no native kernels to time")
    timed = not request.config.option.benchmark_disable
    sizes = (rotation_bytes(), many_rows_bytes()) if timed else (TINY_BYTES, TINY_BYTES)
    yield case(request.param, ops, *sizes)


@pytest.fixture(scope="module")
def linears(request: pytest.FixtureRequest) -> Iterator[linear_case.LinearCase]:
    """Linears of one shape."""
    yield from make(linear_case.LinearCase, request, linear_case.OPS)


@pytest.fixture(scope="module")
def others(request: pytest.FixtureRequest) -> Iterator[op_case.OpCase]:
    """The other ops on one model's widths."""
    yield from make(op_case.OpCase, request, op_case.OPS)
