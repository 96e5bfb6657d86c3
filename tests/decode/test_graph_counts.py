"""How many tokens a row drafts is data: rows of K = 0, 1, 2, ... in one captured graph."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from qspec_decode import generate, speculate
from qspec_decode.graphs import pool
from qspec_decode.graphs.capture import Captured
from qspec_decode.graphs.wanted import Wanted
from qspec_decode.noise import row_seeds
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculative_config import SpeculativeConfig
from tests.decode import emulated_graph
from tests.decode.graph_cases import Case

K, NEW_TOKENS = 4, 14


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_every_row_has_a_number_of_drafts_of_its_own(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulated_graph.install(monkeypatch)
    rng = random.Random(3)
    model: Any = Case(rng, [], 0.0).model
    model.checked = False
    prompts = [[rng.randrange(9) for _ in range(rng.randint(1, 9))] for _ in range(K + 1)]
    seeds = row_seeds(7, K + 1)
    drafted, texts = _captured(model, prompts, seeds, temperature)
    options: dict[str, Any] = {
        "max_new_tokens": NEW_TOKENS,
        "temperature": temperature,
        "enforce_eager": True,
    }
    for k, prompt in enumerate(prompts):
        alone = options | {"seed": [seeds[k]]}
        out = (
            speculate(model, [prompt], draft="mxfp4", num_speculative_tokens=k, **alone)
            if k
            else generate(model, [prompt], **alone)
        )
        assert texts[k] == out.token_ids[0], k
        assert max(drafted[k]) == k
        assert sum(drafted[k]) == sum(level.num_draft_tokens for level in out.levels)


def _captured(
    model: Any, prompts: list[list[int]], seeds: list[tuple[int, int]], temperature: float
) -> tuple[list[list[int]], list[list[int]]]:
    """Drafts of each row round by round, and its new tokens; row r drafts r tokens at the most."""
    wanted = Wanted(
        model, "bf16", ["mxfp4"], SpeculativeConfig(K), SamplingParams(temperature=temperature), frozenset()
    )
    runner = pool.Runners(torch.device("cpu"))._make(wanted, K + 1, 32, captured=False)
    top, rows = runner._top, torch.arange(K + 1)
    lengths, ends = torch.ones(2, K + 1, dtype=torch.int64)
    most = rows + 1

    def one_round() -> Tensor:
        emission, _ = top.fixed_round(lengths, torch.minimum(most, ends - lengths), K + 1)
        lengths.add_(emission.num_tokens)
        return torch.cat([torch.stack([emission.num_tokens, emission.num_draft_tokens], 1), emission.ids], 1)

    # no row may get a token while it is captured
    graph = Captured(one_round, (0, 0), depth=1)
    runner.start(prompts, seeds)
    before = [len(prompt) for prompt in prompts]
    first = runner.round(rows.tolist(), before, [1] * len(prompts), "prefill")
    runner._begin(rows.tolist(), [length + 1 for length in before], [0] * len(prompts))
    texts, drafted = first.ids, [[0] for _ in prompts]
    lengths.copy_(torch.tensor(before) + 1)
    ends.copy_(torch.tensor(before) + NEW_TOKENS)
    while bool((lengths < ends).any()):
        graph.launch()
        for row, (num_tokens, num_drafts, *ids) in enumerate(graph.result().tolist()):
            texts[row] += ids[:num_tokens]
            drafted[row].append(num_drafts)
    return drafted, texts
