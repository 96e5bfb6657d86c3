"""Every kernel computes the right thing and runs as it is timed; with `--benchmark-only` it is timed.

The times are those of a program of `extra_info["calls"]` calls; `qspec bench kernels` times them in turns and
beside the bounds.
"""

from typing import Any

import pytest

from qspec_decode.bench import linear_case, op_case
from qspec_decode.bench.contender import Contender


@pytest.fixture(scope="module")
def linear_contenders(linears: linear_case.LinearCase, rows: int) -> list[Contender]:
    return linears.contenders(rows)


@pytest.fixture(scope="module")
def other_contenders(others: op_case.OpCase, rows: int) -> list[Contender]:
    return others.contenders(rows)


@pytest.mark.parametrize("op", [*linear_case.OPS, *linear_case.PEERS])
def test_linear(benchmark: Any, linear_contenders: list[Contender], op: str) -> None:
    time(benchmark, linear_contenders, op)


@pytest.mark.parametrize("op", op_case.OPS)
def test_other_op(benchmark: Any, other_contenders: list[Contender], op: str) -> None:
    time(benchmark, other_contenders, op)


def time(benchmark: Any, contenders: list[Contender], op: str) -> None:
    found = [contender for contender in contenders if contender.op == op]
    if not found:
        pytest.skip(f"{op} does not serve this shape")
    (contender,) = found
    contender.check()
    benchmark.group = f"{contender.shape}, M = {contender.rows}"
    benchmark.extra_info.update(
        op=op,
        shape=contender.shape,
        m=contender.rows,
        calls=contender.timed.calls,
        bytes_of_a_call=contender.num_bytes,
        operations_of_a_call=contender.operations,
    )
    benchmark(contender.timed.run)
    # replays wrote where only results belong: what is read is as it was
    contender.check()
