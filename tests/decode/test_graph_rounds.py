"""Rounds of fixed shapes, called on the CPU: the tokens that levels make op by op, and the same rounds."""

import os
import random
import weakref
from typing import Any

import pytest
import torch

from qspec_decode import generate, speculate
from qspec_decode.fixed import FixedLevel
from qspec_decode.graphs import pool
from qspec_decode.graphs.runner import Runner
from qspec_kernels import QSpecError, UsageError
from tests.decode.graph_cases import DEEP, ONE_DRAFT, Case, same, tokens_of_rounds_too_many
from tests.decode.tabular import TabularModel, random_tables

# more runs of everything random than a test run has time for
RUNS = int(os.environ.get("QSPEC_TEST_RUNS", "1"))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("names", ONE_DRAFT, ids=str)
def test_rounds_with_one_draft_are_those_of_the_eager_loop(names: list[str], temperature: float) -> None:
    rng = random.Random(f"{names} {temperature}")
    for _ in range(4 * RUNS):
        case = Case(rng, names, temperature)
        eager, seen_eager = case.run(enforce_eager=True)
        graphs, seen_graphs = case.run(enforce_eager=False)
        assert same(graphs, eager), case
        assert seen_graphs.puts == seen_eager.puts, case
        assert seen_graphs.num_ends == 1


@pytest.mark.parametrize("names", DEEP, ids=str)
def test_deep_ladders_decode_what_plain_decoding_does(names: list[str]) -> None:
    rng = random.Random(str(names))
    for _ in range(3 * RUNS):
        case = Case(rng, names, 0.0)
        graphs, _ = case.run(enforce_eager=False)
        plain = case.plain()
        assert graphs.token_ids == plain.token_ids, case
        assert graphs.finish_reasons == plain.finish_reasons, case


@pytest.mark.parametrize("names", DEEP, ids=str)
def test_with_as_many_rounds_as_tokens_a_deep_ladder_is_the_eager_one(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deep ladders differ in where a proposal ends, and only there: K rounds end it where eager ones do."""
    monkeypatch.setattr(FixedLevel, "_num_rounds", lambda self, k: k)
    rng = random.Random(str(names))
    for _ in range(3 * RUNS):
        case = Case(rng, names, 0.9)
        assert same(case.run(enforce_eager=False)[0], case.run(enforce_eager=True)[0]), case


def test_the_number_of_inner_rounds_makes_all_drafts_if_half_of_them_stand() -> None:
    level: Any = FixedLevel.__new__(FixedLevel)
    found = {}
    for k in (1, 3, 4, 8):
        for below in (1, 3, 8):
            level._inner = (None, below)
            found[k, below] = level._num_rounds(k)
    assert found == {
        (1, 1): 1, (1, 3): 1, (1, 8): 1,
        (3, 1): 2, (3, 3): 2, (3, 8): 1,
        (4, 1): 3, (4, 3): 2, (4, 8): 1,
        (8, 1): 6, (8, 3): 4, (8, 8): 2,
    }  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_numbers_are_refused(temperature: float) -> None:
    tables = random_tables(7, 1, {"mxfp4a8": 0.3})
    options: dict[str, Any] = {"temperature": temperature, "enforce_eager": False, "max_new_tokens": 20}
    broken = TabularModel({name: table * float("nan") for name, table in tables.items()})
    with pytest.raises(QSpecError, match="NaN"):
        generate(broken, [[1, 2]], **options)
    # the first token comes out of the prefill, so a fault that only drafts or later tokens meet is another
    spoilt = TabularModel(tables | {"mxfp4a8": tables["mxfp4a8"] * float("nan")})
    with pytest.raises(QSpecError, match="NaN"):
        speculate(spoilt, [[1, 2], [3]], draft="mxfp4", **options)
    later = tables["bf16"].clone()
    later[2:] = float("nan")
    with pytest.raises(QSpecError, match="NaN"):
        speculate(TabularModel(tables | {"bf16": later}), [[1, 2], [1]], draft="mxfp4", **options)


def test_a_round_too_many_commits_nothing() -> None:
    assert tokens_of_rounds_too_many() == 0


def test_a_runner_serves_one_call_after_the_other() -> None:
    """What an earlier call left, longer rows and other seeds included, must not show."""
    model = Case(random.Random(2), [], 0.0).model
    rng = random.Random(3)
    options: dict[str, Any] = {"draft": "mxfp4", "num_speculative_tokens": 3, "temperature": 0.9}
    runners = set()
    for number in range(5):
        length, batch = rng.randint(1, 20), rng.choice([3, 4])
        prompts = [[rng.randrange(9) for _ in range(length)] for _ in range(batch)]
        call = options | {"seed": number, "max_new_tokens": rng.randint(2, 20)}
        eager = speculate(model, prompts, **call)
        graphs = speculate(model, prompts, enforce_eager=False, **call)
        assert same(graphs, eager)
        runners.add(id(model.graphs._idle[0][1]))
    assert len(runners) == 1
    assert graphs.graph_bytes == model.graphs.num_bytes > 0
    assert eager.graph_bytes is None


def test_a_model_keeps_few_runners_and_gives_their_memory_back() -> None:
    model = Case(random.Random(2), [], 0.0).model
    options: dict[str, Any] = {"draft": "mxfp4", "max_new_tokens": 2, "enforce_eager": False}
    for k in range(1, pool.MOST_RUNNERS + 3):
        speculate(model, [[1, 2]], num_speculative_tokens=k, **options)
    assert len(model.graphs._idle) == pool.MOST_RUNNERS
    model.graphs.clear()
    assert model.graphs.num_bytes == 0


@pytest.mark.parametrize("draft", ["w4a99", "w4a16", ["ngram", "mxfp4"]], ids=str)
def test_a_ladder_that_cannot_be_costs_no_runner(draft: str | list[str]) -> None:
    model = Case(random.Random(2), [], 0.0).model
    options: dict[str, Any] = {"max_new_tokens": 2, "enforce_eager": False}
    speculate(model, [[1, 2]], draft="mxfp4", **options)
    kept = list(model.graphs._idle)
    with pytest.raises(UsageError):
        speculate(model, [[1, 2]], draft=draft, **options)
    assert model.graphs._idle == kept


def test_idle_runners_are_given_up_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Case(random.Random(2), [], 0.0).model
    options: dict[str, Any] = {"draft": "mxfp4", "max_new_tokens": 2, "enforce_eager": False}
    speculate(model, [[1, 2]], num_speculative_tokens=1, **options)
    make, tried = pool.Runners._make, list[weakref.ref[torch.Tensor]]()

    def short(self: pool.Runners, *arguments: Any, **named: Any) -> Runner:
        if self._idle:
            allocated = torch.zeros(1)
            tried.append(weakref.ref(allocated))
            raise torch.OutOfMemoryError("CUDA out of memory")
        # neither is what was allocated before memory ran out
        assert [one() for one in tried] == [None]
        return make(self, *arguments, **named)

    monkeypatch.setattr(pool.Runners, "_make", short)
    out = speculate(model, [[1, 2]], num_speculative_tokens=2, **options)
    assert out.graph_bytes == model.graphs.num_bytes
    assert len(model.graphs._idle) == 1


def test_a_call_inside_a_call_gets_a_runner_of_its_own() -> None:
    case = Case(random.Random(4), ["mxfp4"], 0.0)
    case.options |= {"max_new_tokens": 9, "eos_token_id": ()}

    class Nested:
        def put(self, *_: Any) -> None:
            inner.append(case.run(enforce_eager=False)[0].token_ids)

        def end(self) -> None: ...

    inner: list[Any] = []
    expected = case.run(enforce_eager=True)[0].token_ids
    ladder: dict[str, Any] = {"draft": case.draft, "num_speculative_tokens": case.k}
    out = speculate(
        case.model, case.prompts, enforce_eager=False, streamer=Nested(), **ladder, **case.options
    )
    assert out.token_ids == expected
    assert len(inner) > 1
    assert all(ids == expected for ids in inner)


@pytest.mark.parametrize(
    ("batch", "rows"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (64, 64), (65, 96), (128, 128)]
)
def test_numbers_of_rows_that_are_captured(batch: int, rows: int) -> None:
    assert pool.bucket(batch) == rows
