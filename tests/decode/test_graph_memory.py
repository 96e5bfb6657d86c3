"""Captured rounds hold no more memory than their bound says, which a user can set."""

import random
import warnings
from typing import Any

import pytest
import torch

from qspec_decode import speculate
from qspec_decode.graphs import pool
from qspec_decode.graphs.capture import Called
from qspec_decode.graphs.runner import Runner
from qspec_decode.ladder import SpeculativeConfig
from qspec_kernels import UsageError
from tests.decode.graph_cases import Case, same

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"draft": "mxfp4", "max_new_tokens": 9}


@pytest.fixture
def model() -> Any:
    return Case(random.Random(2), [], 0.0).model


@pytest.fixture
def size(model: Any) -> int:
    """Bytes of one runner."""
    speculate(model, [[1, 2]], num_speculative_tokens=3, enforce_eager=False, **OPTIONS)
    return model.graphs.num_bytes


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds are captured unless a call says otherwise, as on a GPU."""
    monkeypatch.setattr(pool, "eager_because", lambda wanted: "")


def of_lookup(n: int, *, enforce_eager: bool | None = False) -> SpeculativeConfig:
    """The lengths that "ngram" looks up make other runners of the same size."""
    return SpeculativeConfig(3, prompt_lookup_max=n, enforce_eager=enforce_eager)


def test_runners_that_take_too_much_make_room(model: Any, size: int) -> None:
    kept = {}
    for most in (2 * size + size // 2, 2 * size, size):
        model.graphs = pool.Runners(CPU, max_bytes=most)
        for n in (5, 6, 7):
            speculate(model, [[1, 2]], config=of_lookup(n), **OPTIONS)
            assert model.graphs.num_bytes <= most
        kept[most // size, most % size > 0] = [key[3][1] for key, _ in model.graphs._idle]
    assert kept == {(2, True): [7, 6], (2, False): [7, 6], (1, False): [7]}


@pytest.mark.usefixtures("on_a_gpu")
def test_one_runner_that_is_too_large_runs_op_by_op(
    model: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    make = Runner.__init__

    def init(self: Runner, *arguments: Any) -> None:
        make(self, *arguments)
        made.append(arguments[-1] is None)

    monkeypatch.setattr(Runner, "__init__", init)
    expected = speculate(model, [[1, 2]], config=of_lookup(4, enforce_eager=True), **OPTIONS)
    model.graphs = pool.Runners(CPU, max_bytes=size - 1)
    model.graphs._memory = "what graphs share"
    monkeypatch.setattr("qspec_decode.graphs.runner.Captured", lambda function, *_: Called(function))
    message = (
        rf"slower: 1 rows of 40 positions take {size:,} bytes, .* may take {size - 1:,} \(model.graphs ="
    )
    with pytest.warns(UserWarning, match=message):
        first = speculate(model, [[1, 2]], config=of_lookup(4, enforce_eager=None), **OPTIONS)
    assert same(first, expected)
    assert model.graphs.num_bytes == 0
    # it was made to be looked at once, and is told of once
    assert made == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = speculate(model, [[1, 2]], config=of_lookup(4, enforce_eager=None), **OPTIONS)
    assert same(again, expected)
    assert made == [False, True, True]


def test_who_insists_is_told_what_is_missing(model: Any, size: int) -> None:
    model.graphs = pool.Runners(CPU, max_bytes=size - 1)
    for _ in range(2):
        with pytest.raises(UsageError, match=f"take {size:,} bytes.* may take {size - 1:,}") as error:
            speculate(model, [[1, 2]], config=of_lookup(4), **OPTIONS)
        assert "max_bytes" in error.value.hint
    assert model.graphs.num_bytes == 0


@pytest.mark.usefixtures("on_a_gpu")
def test_what_is_in_use_counts(model: Any, size: int) -> None:
    """A call inside a call: what both need together is too much, each alone is not."""
    seen: list[int] = []

    class Nested:
        def put(
            self, rows: list[int], tokens: list[list[int]], num_drafted: list[int], num_accepted: list[int]
        ) -> None:
            if not seen:
                with pytest.warns(UserWarning, match="may take"):
                    speculate(model, [[1, 2]], config=of_lookup(5, enforce_eager=None), **OPTIONS)
            seen.append(model.graphs.num_bytes)

        def end(self) -> None: ...

    model.graphs = pool.Runners(CPU, max_bytes=2 * size - 1)
    speculate(model, [[1, 2]], config=of_lookup(4), streamer=Nested(), **OPTIONS)
    assert set(seen) == {size}
    # it was in the way, not too large
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        speculate(model, [[1, 2]], config=of_lookup(5, enforce_eager=None), **OPTIONS)
    assert [key[3][1] for key, _ in model.graphs._idle] == [5]


def test_a_call_that_fails_leaves_nothing_in_use(model: Any, size: int) -> None:
    class Broken:
        def put(
            self, rows: list[int], tokens: list[list[int]], num_drafted: list[int], num_accepted: list[int]
        ) -> None:
            raise RuntimeError("the reader is gone")

        def end(self) -> None: ...

    with pytest.raises(RuntimeError, match="is gone"):
        speculate(model, [[1, 2]], config=of_lookup(5), streamer=Broken(), **OPTIONS)
    assert model.graphs.num_bytes == size


@pytest.mark.parametrize("most", [-1, True])
def test_a_bound_is_a_number_of_bytes(most: Any) -> None:
    with pytest.raises(UsageError, match=r"max_bytes is .*; expected an integer, at least 0"):
        pool.Runners(CPU, max_bytes=most)
