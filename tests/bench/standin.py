"""A GPU that is none: the torch backend stands in for kernels, of both phases, plain calls for graphs.

Test files import its fixtures: `device`, `mutate`, and `small`, without which everything takes long.
"""

import json
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qspec_decode.bench import shapes
from qspec_decode.bench.gpu import (
    backends,
    cases_cache,
    cases_linear,
    cases_rows,
    cases_vocabulary,
    correctness,
    linear_case,
    prepared,
    registered,
    run,
)
from qspec_decode.bench.gpu.case import PREFILL
from qspec_decode.bench.gpu.device import Captured

TINY = shapes.ModelShape("tiny", hidden=128, intermediate=256, heads=4, kv_heads=2, head_dim=32, vocab=200)
# of those that take long few are needed to see that the run is complete
FEW = ("linear_w4a8", "linear_w4a16", "hadamard_quantize_act", "attention", "rescore", "cache_write")

Mutate = Callable[[str, Callable[..., Any]], None]


class Standin:
    """A device on the CPU."""

    device = torch.device("cpu")
    capability: tuple[int, int] = (9, 0)
    backends: tuple[str, ...] = ("torch",)
    l2_bytes: int = 1 << 10
    memory_bytes: int = 1 << 30

    def __init__(self) -> None:
        self.timed = 0

    def facts(self) -> dict[str, Any]:
        return {"name": "standin", "driver": "1.2", "capability": "9.0"}

    def capture(self, call: Callable[[], Any]) -> Captured:
        out = call()

        def replay() -> None:
            for kept, new in zip(tensors(out), tensors(call()), strict=True):
                kept.copy_(new)

        return Captured(replay, out)

    def seconds(self, replay: Callable[[], object]) -> float:
        replay()
        self.timed += 1
        return self.timed * 1e-6


def tensors(out: Any) -> tuple[torch.Tensor, ...]:
    """Results of a kernel."""
    return () if out is None else out if isinstance(out, tuple) else (out,)


@pytest.fixture
def device() -> Standin:
    return Standin()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model to time on, and cases of no more columns and rows than are needed to be right or wrong."""
    monkeypatch.setitem(shapes.MODELS, "tiny", TINY)
    monkeypatch.setattr(cases_vocabulary, "WIDEST", 5000)
    monkeypatch.setattr(cases_rows, "LARGEST", 576)
    monkeypatch.setattr(cases_cache, "CAPACITY", 130)
    monkeypatch.setattr(cases_cache, "WRITTEN", 12)
    monkeypatch.setattr(cases_cache, "VERIFIED", (80,))
    for name, value in (("WIDE", (256, 80)), ("VERIFIED", (128,)), ("PROMPTS", (192,))):
        monkeypatch.setattr(cases_linear, name, value)
    monkeypatch.setattr(correctness, "EVERY", correctness.COUNTS)
    # take longer than everything else; they are tested for themselves
    monkeypatch.setattr(registered, "UTILITIES", ())
    monkeypatch.setattr(registered, "COUNTS", ())
    # nothing is compiled here
    monkeypatch.setattr(prepared, "prepare", lambda *_: None)
    has, module = backends._has, backends._module
    monkeypatch.setattr(backends, "_has", lambda backend, op: has(backend, op.removesuffix(PREFILL)))
    monkeypatch.setattr(
        backends, "_module", lambda backend, op: of_phase(module(backend, op.removesuffix(PREFILL)), op)
    )


def of_phase(module: Any, op: str) -> Any:
    """A file of the torch backend, which knows no phases, as that of a kernel of the prefill phase."""
    if not op.endswith(PREFILL):
        return module
    return SimpleNamespace(
        **{op: getattr(module, op.removesuffix(PREFILL)), "READS": getattr(module, "READS", None)}
    )


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch) -> Mutate:
    """mutate(op, wrong): the stand-in's kernel is wrong(kernel, *arguments); the reference stays right."""
    find = backends.function
    wrongs: dict[str, Callable[..., Any]] = {}

    def chosen(backend: str, op: str) -> Callable[..., Any]:
        return partial(wrongs[op], find(backend, op)) if op in wrongs else find(backend, op)

    monkeypatch.setattr(correctness._Run, "find", staticmethod(chosen))
    monkeypatch.setattr(linear_case, "function", chosen)
    return wrongs.__setitem__


def request(**changes: Any) -> run.Request:
    given = {"ops": FEW, "shapes": ["tiny"], "rows": [1, 200], "keys": 64, "batch": 2, **changes}
    return run.Request(**given)


def measured(device: Standin, **changes: Any) -> dict[str, Any]:
    document = run.run(request(**changes), device, lambda _: None)
    json.dumps(document, allow_nan=False)
    return document


def last_value(right: Callable[..., Any], *args: Any) -> Any:
    out = right(*args)
    results = tensors(out) or args[:1]
    results[0].view(-1)[-1] += 9
    return out
