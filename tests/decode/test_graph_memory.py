"""Captured rounds hold no more memory than their bound says, which a user can set."""

import random
import warnings
import weakref
from typing import Any

import pytest
import torch

from qspec_decode import speculate
from qspec_decode.graphs import pool, wanted
from qspec_decode.graphs.capture import Called
from qspec_decode.graphs.runner import Runner
from qspec_decode.speculative_config import SpeculativeConfig
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
    monkeypatch.setattr(wanted, "eager_because", lambda _: "")


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
    model.graphs._new_memory = lambda: "what graphs share"
    monkeypatch.setattr("qspec_decode.graphs.runner.Captured", lambda function, *_: Called(function))
    message = (
        rf"slower: 1 rows of 40 positions take {size:,} bytes, .* may take {size - 1:,} \(model.graphs ="
    )
    # which checks types of what the package calls here
    monkeypatch.setattr(wanted, "_BETWEEN", (*wanted._BETWEEN, "jaxtyping"))
    with pytest.warns(UserWarning, match=message) as warned:
        first = speculate(model, [[1, 2]], config=of_lookup(4, enforce_eager=None), **OPTIONS)
    assert warned[0].filename == __file__
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
                message = f"take {size:,} bytes, .* may take {2 * size - 1:,}, of which .* hold {size:,} "
                with pytest.warns(UserWarning, match=message):
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


class SharedMemory:
    """What graphs of one handle share, as CUDA's allocator keeps it: it grows to what the largest of them
    needs, is given back with the last of them, and then its handle is worth nothing.

    `needs` are the bytes of the graphs to come.
    """

    def __init__(self) -> None:
        self.needs: list[int] = []
        self.size, self.handle = 0, -1
        self.graphs = weakref.WeakSet[Any]()

    def new(self) -> int:
        assert not self.graphs
        self.size, self.handle = 0, self.handle + 1
        return self.handle

    def capture(self, function: Any, handle: int, _depth: int) -> Called:
        graph = Called(function)
        assert handle == self.handle
        assert self.graphs or self.size == 0, "a handle whose graphs are all gone"
        grown = max(self.size, self.needs.pop(0))
        graph.num_bytes, self.size = grown - self.size, grown
        self.graphs.add(graph)
        return graph


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> SharedMemory:
    found = SharedMemory()
    monkeypatch.setattr("qspec_decode.graphs.runner.Captured", found.capture)
    return found


def with_bound(model: Any, shared: SharedMemory, most: int) -> None:
    model.graphs = pool.Runners(CPU, max_bytes=most)
    model.graphs._new_memory = shared.new


def test_what_graphs_share_counts_until_the_last_is_gone(model: Any, size: int, shared: SharedMemory) -> None:
    """`size` is what a runner holds without its graph."""
    with_bound(model, shared, 2 * size + 1000)
    shared.needs = [600, 100, 900]
    for n, held in ((5, size + 600), (6, 2 * size + 600), (7, 2 * size + 900)):
        speculate(model, [[1, 2]], config=of_lookup(n), **OPTIONS)
        assert model.graphs.num_bytes == held
        assert shared.size == held - size * len(model.graphs._idle)
    # the one that made it grow is gone, what it grew by is not
    assert [key[3][1] for key, _ in model.graphs._idle] == [7, 6]
    model.graphs.clear()
    assert (model.graphs.num_bytes, len(shared.graphs)) == (0, 0)
    shared.needs = [200]
    out = speculate(model, [[1, 2]], config=of_lookup(5), **OPTIONS)
    assert shared.handle == 1
    assert model.graphs.num_bytes == out.graph_bytes == size + 200


@pytest.mark.usefixtures("on_a_gpu")
def test_what_a_dropped_graph_left_is_in_nobodys_way(model: Any, size: int, shared: SharedMemory) -> None:
    class Nested:
        def put(
            self, rows: list[int], tokens: list[list[int]], num_drafted: list[int], num_accepted: list[int]
        ) -> None:
            if shared.needs:
                with pytest.warns(UserWarning, match=f"take {size + 800:,} bytes"):
                    speculate(model, [[1, 2]], config=of_lookup(5, enforce_eager=None), **OPTIONS)
            assert model.graphs.num_bytes == size + 900

        def end(self) -> None: ...

    with_bound(model, shared, 2 * size + 500)
    shared.needs = [100, 900]
    speculate(model, [[1, 2]], config=of_lookup(4), streamer=Nested(), **OPTIONS)
    assert shared.size == model.graphs.num_bytes - size == 900
    # too much beside that; alone it fits
    model.graphs._max_bytes = size + 500
    shared.needs = [100, 100]
    speculate(model, [[1, 2]], config=of_lookup(6), **OPTIONS)
    assert [key[3][1] for key, _ in model.graphs._idle] == [6]
    assert (shared.needs, shared.size, model.graphs.num_bytes) == ([], 100, size + 100)
