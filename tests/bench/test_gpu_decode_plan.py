"""What `qspec bench gpu` decodes: everything once, what matters most first."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from qspec_decode.bench.contenders import LADDERS
from qspec_decode.bench.gpu import cases, kernel_plan, request
from qspec_decode.bench.gpu.decode_plan import Task, by_weight, groups, tasks
from qspec_decode.graphs.pool import MOST_RUNNERS
from qspec_kernels import UsageError
from tests.bench.standin import Standin, small

__all__ = ["small"]


def test_every_ladder_is_in_a_group_that_is_captured_once() -> None:
    found = groups(LADDERS)
    assert sorted(one.title for group in found for one in group) == sorted(one.title for one in LADDERS)
    for group in found:
        assert len(Task("runs", "1b", 1, group).contenders) <= MOST_RUNNERS
    assert [one.title for one in found[0]] == ["bf16 <- mxfp4", "w4a16 <- w4a8"]


def test_small_and_large_batches_come_before_those_between() -> None:
    assert by_weight([4, 1, 16, 32, 128, 64]) == [1, 128, 64, 4, 16, 32]
    assert by_weight([8]) == [8]
    assert by_weight([8, 1, 8]) == [1, 8]


def test_the_first_ladders_come_first_and_everything_once() -> None:
    found = list(tasks(("8b", "1b"), (1, 4, 64)))
    assert len(set(found)) == len(found)
    first = groups(LADDERS)[0]
    assert found[:4] == [
        Task("passes", "8b", 1),
        Task("runs", "8b", 1, first),
        Task("runs", "8b", 1, first, graphs=False),
        Task("peer", "8b", 1),
    ]
    for scale, batch, graphs in itertools.product(("8b", "1b"), (1, 4, 64), (True, False)):
        ladders = [
            one
            for task in found
            if (task.kind, task.scale, task.batch, task.graphs) == ("runs", scale, batch, graphs)
            for one in task.ladders
        ]
        assert sorted(one.title for one in ladders) == sorted(one.title for one in LADDERS)
    for kind in ("passes", "peer"):
        assert len([task for task in found if task.kind == kind]) == 6
    places = [
        index
        for index, task in enumerate(found)
        if task.kind == "runs" and task.graphs and task.ladders == first
    ]
    others = [index for index, task in enumerate(found) if task.kind == "runs" and task.ladders != first]
    assert max(places) < min(others)


def test_kernels_leave_time_to_decode() -> None:
    assert request.Request().kernels_until(50.0) == request.BUDGET
    for passed in (0.0, 50.0, request.Request().check_seconds):
        left = request.BUDGET - passed
        until = request.Request(scales=("1b",)).kernels_until(passed)
        assert passed + 0.4 * left < until < passed + 0.6 * left
    assert request.Request().check_seconds < 0.5 * request.BUDGET
    # nothing is left
    assert request.Request(scales=("1b",)).kernels_until(request.BUDGET + 1) <= request.BUDGET + 1


@pytest.mark.usefixtures("small")
def test_the_page_counts_what_there_is() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/measure_decoding.md").read_text(encoding="utf-8")
    asked, device = request.Request(), Standin()
    num_cases = sum(len(cases.cases(op)) for op in cases.OPS)
    num_shapes = len(list(kernel_plan.tasks(asked, device)))
    num_decoded = len(list(tasks(request.DECODED, request.BATCHES)))
    counted = f"{num_cases} cases to check, {num_shapes} shapes to time and {num_decoded} tasks to decode."
    assert f"There are {counted}" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ["9b"]}, "unknown scale '9b'"),
        ({"batches": [0]}, r"batch is \[0\]"),
        ({"batches": []}, "batch"),
    ],
)
def test_what_cannot_be_decoded_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        request.Request(**options)
