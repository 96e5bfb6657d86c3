"""Rounds as graphs, which the CPU emulates: a replay is all that is left of the Python that was captured."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qspec_decode.model
from qspec_decode import DraftModel, generate, load, speculate
from qspec_decode.fixed import FixedLevel
from qspec_decode.graphs import capture, pool, runner
from qspec_decode.graphs.capture import Captured
from qspec_kernels import QSpecError
from tests.decode import emulated_graph
from tests.decode.emulated_graph import EmulatedGraph, Journal, Waited
from tests.decode.graph_cases import Case, same
from tests.decode.recorders import Recorder

Families = Callable[[str], tuple[Path, Any]]


@pytest.fixture(autouse=True)
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Rounds are captured on the CPU too; a recorded program would hide from the graph what it runs."""
    journal = emulated_graph.install(monkeypatch)
    monkeypatch.setattr(qspec_decode.model, "MAX_TOKENS", 0)
    make = pool.Runners.__init__

    def init(self: pool.Runners, device: torch.device) -> None:
        make(self, device)
        self._new_memory = lambda: (0, 0)

    monkeypatch.setattr(pool.Runners, "__init__", init)
    return journal


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_captured_round_decodes_what_the_eager_loop_does(family: Families, temperature: float) -> None:
    model = load(family("llama")[0], precisions=("bf16", "mxfp4", "w4a8"), group_size=32)
    small = DraftModel(load(family("llama-tied-one-kv-head")[0], precisions=("bf16",)))
    rng = random.Random(5)
    for draft in (["mxfp4"], [small, "ngram"] if temperature == 0 else ["w4a4"]):
        prompts = [[rng.randrange(211) for _ in range(rng.randint(1, 20))] for _ in range(3)]
        options: dict[str, Any] = {"max_new_tokens": 12, "seed": 3, "temperature": temperature}
        options |= {"draft": draft, "eos_token_id": rng.randrange(211)}
        options |= {"num_speculative_tokens": rng.randint(1, 4)}
        eager = speculate(model, prompts, enforce_eager=True, **options)
        graphs = speculate(model, prompts, enforce_eager=False, **options)
        again = speculate(model, prompts, enforce_eager=False, **options)
        assert graphs.token_ids == eager.token_ids, options
        assert same(again, graphs), options
    assert isinstance(model.graphs._idle[0][1]._rounds, Captured)
    plain: dict[str, Any] = {"max_new_tokens": 12, "seed": 3, "temperature": temperature}
    expected = generate(model, prompts, enforce_eager=True, **plain).token_ids
    assert generate(model, prompts, enforce_eager=False, **plain).token_ids == expected


@pytest.mark.parametrize("names", [["mxfp4", "w4a8"], ["mxfp4", "small", "ngram"]], ids=str)
def test_a_captured_deep_ladder_decodes_what_plain_decoding_does(names: list[str]) -> None:
    rng = random.Random(str(names))
    # a table asserts what it is fed, which looks at values
    for _ in range(3):
        case = Case(rng, names, 0.0)
        case.model.checked = False
        for draft in case.draft:
            if isinstance(draft, DraftModel):
                draft.model.checked = False  # type: ignore[attr-defined]
        assert case.run(enforce_eager=False)[0].token_ids == case.plain().token_ids, case


def test_the_committed_cache_is_a_clean_prefill_bit_for_bit(family: Families) -> None:
    model = load(family("llama")[0], precisions=("bf16", "mxfp4"))
    prompts = [[5, 6, 7], [8] * 11, [9, 10]]
    options: dict[str, Any] = {"draft": "mxfp4", "num_speculative_tokens": 3, "max_new_tokens": 20}
    speculate(model, prompts, enforce_eager=False, **options)
    cache = model.graphs._idle[0][1]._top.cache
    # large garbage where nothing has been committed yet must never be read
    for tensor in (*cache.k, *cache.v):
        tensor.fill_(1e4)
    out = speculate(model, prompts, enforce_eager=False, **options)
    assert cache is model.graphs._idle[0][1]._top.cache
    assert out.token_ids == generate(model, prompts, enforce_eager=True, max_new_tokens=20).token_ids
    for row, sequence in enumerate(out.sequences):
        ids = sequence[:-1]
        clean = model.new_cache(1, len(ids), "bf16")
        model.forward(ids, torch.zeros_like(ids), torch.arange(len(ids)), clean, "bf16")
        for layer in range(model.config.num_hidden_layers):
            assert torch.equal(cache.k[layer][row, :, : len(ids)], clean.k[layer][0])
            assert torch.equal(cache.v[layer][row, :, : len(ids)], clean.v[layer][0])


def test_results_come_in_order_while_later_launches_are_under_way() -> None:
    count = torch.zeros(1, dtype=torch.int64)
    rounds = Captured(lambda: count.add_(1).clone(), (0, 0), depth=2)
    count.zero_()
    seen = []
    for _ in range(2):
        rounds.launch()
    for _ in range(5):
        seen.append(int(rounds.result()))
        rounds.launch()
    assert seen == [1, 2, 3, 4, 5]
    rounds.forget()
    count.zero_()
    rounds.launch()
    assert int(rounds.result()) == 1


def test_all_that_happens_before_capture_is_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are compiled on their first run, which must not be the captured one."""
    under_capture: list[bool] = []
    capturing = [False]
    enter, leave = EmulatedGraph.__enter__, EmulatedGraph.__exit__

    def begin(self: EmulatedGraph) -> Any:
        capturing[0] = True
        return enter(self)

    def end(self: EmulatedGraph, *error: Any) -> Any:
        capturing[0] = False
        return leave(self, *error)

    monkeypatch.setattr(EmulatedGraph, "__enter__", begin)
    monkeypatch.setattr(EmulatedGraph, "__exit__", end)

    def function() -> Tensor:
        under_capture.append(capturing[0])
        return torch.zeros(1)

    Captured(function, (0, 0), depth=1)
    assert under_capture == [False] * capture._WARM_UP + [True]


def test_what_cannot_be_captured_is_said_with_a_way_out() -> None:
    calls: list[int] = []

    def function() -> Tensor:
        calls.append(0)
        if len(calls) > capture._WARM_UP:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    with pytest.raises(QSpecError, match=r"could not be captured.*not permitted") as found:
        Captured(function, (0, 0), depth=1)
    assert "enforce_eager=True" in found.value.hint


@pytest.mark.parametrize(
    "name", ["looks at a value", "chooses rows", "goes on from a list", "synchronises", "asks for a list"]
)
def test_a_round_that_a_graph_cannot_hold_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_round = FixedLevel.fixed_round

    def mutant(self: FixedLevel, lengths: Tensor, limits: Tensor, most: int) -> Any:
        if name == "looks at a value":
            most = min(most, int(limits.max()) + 1)
        elif name == "chooses rows":
            limits = limits.clone()
            limits[limits > most] = most
        elif name == "synchronises":
            torch.cuda.synchronize()
        elif name == "asks for a list":
            # without an op, on the CPU
            limits.tolist()
        else:
            limits = torch.minimum(limits, torch.tensor([most]))
        return fixed_round(self, lengths, limits, most)

    case = Case(random.Random(1), ["mxfp4"], 0.0)
    case.model.checked = False
    monkeypatch.setattr(FixedLevel, "fixed_round", mutant)
    with pytest.raises(Waited):
        case.run(enforce_eager=False)


class Streamed(Recorder):
    """A streamer that writes down when it is called."""

    def __init__(self, journal: Journal):
        super().__init__()
        self._journal = journal

    def put(self, *call: Any) -> None:
        super().put(*call)
        self._journal.entries.append("put")


def entries(journal: Journal) -> list[str]:
    """What a call of one row without a draft does, from its first token on: a round a token."""
    case = Case(random.Random(1), [], 0.0)
    case.model.checked = False
    journal.entries.clear()
    options: dict[str, Any] = {"max_new_tokens": 4, "enforce_eager": False}
    generate(case.model, [[1, 2]], streamer=Streamed(journal), **options)
    return journal.entries[journal.entries.index("put") :]


def test_tokens_stream_out_one_round_behind_the_launches(journal: Journal) -> None:
    token = ["wait", "put", "launch"]
    # the first comes from the prefill; when the last one is there, one round too many is under way
    assert entries(journal) == ["put", "launch", "launch", *token, *token, "wait", "put"]


def test_without_lookahead_the_device_would_idle(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOOKAHEAD", 0)
    assert entries(journal) == ["put", *["launch", "wait", "put"] * 3]


@pytest.mark.parametrize("name", ["waits for its result", "copies at once", "reads its result"])
def test_a_launch_that_waits_is_refused(name: str, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def mutant(self: Captured) -> None:
        slot = self._launched % len(self._slots)
        self._graph.replay()
        self._slots[slot].copy_(self._out, non_blocking=name != "copies at once")
        self._events[slot].record()
        if name == "waits for its result":
            self._events[slot].synchronize()
        elif name == "reads its result":
            self._slots[slot].tolist()
        self._launched += 1

    emulated_graph.watch(monkeypatch, journal, mutant)
    with pytest.raises(Waited):
        entries(journal)


def test_state_that_python_keeps_is_lost_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulation is strict: lengths that are bound anew, and not written in place, stay what they were."""
    fixed_round = FixedLevel.fixed_round

    def mutant(self: FixedLevel, lengths: Tensor, limits: Tensor, most: int) -> Any:
        out = fixed_round(self, lengths, limits, most)
        self._cache.fixed = self._cache.fixed.clone()
        return out

    case = Case(random.Random(3), ["small"], 0.0)
    case.model.checked = case.draft[0].model.checked = False
    case.options |= {"max_new_tokens": 20, "eos_token_id": ()}
    eager, _ = case.run(enforce_eager=True)
    assert same(case.run(enforce_eager=False)[0], eager)
    case.model.graphs.clear()
    monkeypatch.setattr(FixedLevel, "fixed_round", mutant)
    assert not same(case.run(enforce_eager=False)[0], eager)
