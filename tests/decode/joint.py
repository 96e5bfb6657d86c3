"""Joint distribution of the tokens that `speculate` emits, over the whole loop: B4, B6, their mutants."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from qspec_decode import ladder
from qspec_decode.proposal import Proposal, Run
from qspec_decode.speculate import speculate
from reference import accept, sampling
from tests.decode import mutants
from tests.decode.chi_square import Fit, cells, fit
from tests.decode.tabular import TabularModel, random_tables

# six ids and a padded one, whose logits are -inf; prompts of several lengths end in it, and behind it the
# first new token, which comes without a draft, is certain: rounds make all the others
VOCAB, PADDED, FIRST = 7, 6, 2
PROMPTS = ([4, 6], [4, 6, 2, 0, 4, 6], [3, 5, 4, 6])
BLOCK = 20_000
# a seed whose p and q differ so that lenience shows
TABLES = 18


@dataclass(frozen=True)
class Case:
    """A ladder with its K, and how many tokens behind the first are looked at."""

    name: str
    draft: list[str]
    k: list[int]
    length: int = 5
    sampling: dict[str, Any] = field(default_factory=lambda: {"temperature": 1.0})
    num_sequences: int = 200_000


CASES = [
    Case("bf16 <- mxfp4, K=2", ["mxfp4"], [2], 3),
    Case("bf16 <- mxfp4, K=2, T=0.6", ["mxfp4"], [2], 3, {"temperature": 0.6}, 100_000),
    Case("bf16 <- mxfp4, K=2, top-k 3", ["mxfp4"], [2], 3, {"temperature": 1.0, "top_k": 3}, 100_000),
    Case("bf16 <- mxfp4, K=2, top-p 0.7", ["mxfp4"], [2], 3, {"temperature": 1.0, "top_p": 0.7}, 100_000),
    Case("bf16 <- mxfp4, K=4, five tokens", ["mxfp4"], [4]),
    Case("bf16 <- greedy, K=2", ["greedy"], [2], 3, num_sequences=100_000),
    Case("bf16 <- ngram, K=2", ["ngram"], [2], 3, num_sequences=20_000),
    Case("bf16 <- mxfp4 <- w4a8, K=3,2", ["mxfp4", "w4a8"], [3, 2]),
    Case("bf16 <- mxfp4 <- small, K=2,3", ["mxfp4", "small"], [2, 3], num_sequences=100_000),
    Case("bf16 <- mxfp4 <- greedy, K=3,2", ["mxfp4", "greedy"], [3, 2], num_sequences=100_000),
    Case("bf16 <- mxfp4 <- ngram, K=3,2", ["mxfp4", "ngram"], [3, 2], num_sequences=20_000),
    Case("bf16 <- mxfp4 <- w4a8 <- w4a4, K=4,2,1", ["mxfp4", "w4a8", "w4a4"], [4, 2, 1]),
    Case(
        "bf16 <- mxfp4 <- small <- greedy, K=3,3,2",
        ["mxfp4", "small", "greedy"],
        [3, 3, 2],
        num_sequences=100_000,
    ),
]
_TWO, _THREE = replace(CASES[0], num_sequences=40_000), replace(CASES[7], num_sequences=40_000)

# each mutant with the ladder that it is tried on; the faint ones need as many sequences as the cases
MUTANTS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], Case]] = {
    "no residual": (mutants.no_residual, _TWO),
    "lenience 1.05": (mutants.lenience, CASES[4]),
    "bonus from the draft": (mutants.bonus_from_draft, _TWO),
    "bonus and residual with stale context": (mutants.stale_context, _TWO),
    "coin reused for the residual": (mutants.coin_reused, _TWO),
    "coin shared by rows": (mutants.coin_shared, _TWO),
    "draft and residual share their noise": (mutants.noise_shared, CASES[0]),
    "inner level resamples from its own p": (mutants.inner_resamples, _THREE),
    "inner level declares its draft's q": (mutants.inner_declares_draft, _THREE),
}


class GreedyLevel:
    """Proposes the argmax of a table and says that nothing was drawn; stands in for "ngram"."""

    name = "greedy"
    table: Tensor

    def __init__(self, run: Run, longest: int, shortest: int):
        self._run = run

    def prefill(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Nothing to prepare."""

    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Nothing is remembered."""

    def propose(self, rows: Sequence[int], lengths: Sequence[int], counts: Sequence[int]) -> Proposal:
        """One more id than was asked for is left in the buffer: scratch, that no one may read."""
        proposed = []
        for row, length, count in zip(rows, lengths, counts, strict=True):
            text = self._run.buffer.texts[row][:length]
            for _ in range(count + 1):
                text.append(int(self.table[text[-2], text[-1]].argmax()))
            self._run.buffer.write(row, length, text[length:])
            proposed.append(text[length : length + count])
        return Proposal(proposed, None)


def model() -> TabularModel:
    """Tables whose drafts stand in 60 to 80 % of the cases."""
    return TabularModel(
        _padded(random_tables(VOCAB, TABLES, {"mxfp4a8": 0.7, "w4a8": 1.1, "w4a4": 1.5}, scale=1.3))
    )


def small() -> TabularModel:
    """Another model, with a cache of its own."""
    return TabularModel({"bf16": _padded(random_tables(VOCAB, TABLES, {"small": 1.1}, scale=1.3))["small"]})


def _padded(tables: dict[str, Tensor]) -> dict[str, Tensor]:
    for table in tables.values():
        table[..., PADDED] = -torch.inf
    certain = torch.full((VOCAB,), -torch.inf)
    certain[FIRST] = 0.0
    tables["bf16"][:, PADDED] = certain
    return tables


def exact(case: Case) -> Tensor:
    """Probabilities of the tokens behind the first, float64 [VOCAB] * case.length."""
    table = model().tables["bf16"]
    options = {**case.sampling}
    rows: dict[tuple[int, int], Tensor] = {}

    def target(context: tuple[int, ...]) -> Tensor:
        last = context[-2:]
        if last not in rows:
            rows[last] = sampling.probabilities(table[last], **options)
        return rows[last]

    return accept.joint(target, (PROMPTS[0][-1], FIRST), case.length)


def draw(case: Case, seed: int = 23) -> Tensor:
    """Tokens behind the first [num_sequences, length], from calls of `speculate` on ragged batches."""
    GreedyLevel.table = model().tables["w4a8"]
    draft = [{"small": ladder.DraftModel(small()), "greedy": "ngram"}.get(name, name) for name in case.draft]
    blocks = []
    with patch.object(ladder, "NgramLevel", GreedyLevel if "greedy" in case.draft else ladder.NgramLevel):
        for first in range(0, case.num_sequences, BLOCK):
            out = speculate(
                model(),
                [PROMPTS[row % len(PROMPTS)] for row in range(min(BLOCK, case.num_sequences - first))],
                draft=draft,
                num_speculative_tokens=case.k,
                max_new_tokens=case.length + 1,
                seed=seed + first,
                **case.sampling,
            )
            blocks.append(torch.tensor(out.token_ids))
    tokens = torch.cat(blocks)
    assert bool((tokens[:, 0] == FIRST).all())
    return tokens[:, 1:]


def run(case: Case) -> list[Fit]:
    """Fit of the first three tokens' joint distribution and, if there are more, of the last three's."""
    tokens, probs = draw(case), exact(case)
    fits = [fit(cells(tokens[:, :3], VOCAB), probs.flatten(3).sum(-1) if case.length > 3 else probs)]
    if case.length > 3:
        fits.append(fit(cells(tokens[:, -3:], VOCAB), probs.flatten(0, case.length - 4).sum(0)))
    return fits


def worst(fits: list[Fit]) -> Fit:
    """The fit that comes nearest to its threshold, or passes it by most."""
    return max(fits, key=lambda f: f.chi_square / f.threshold)


def results() -> Iterator[tuple[str, Fit]]:
    """Every case; of its windows the worst."""
    for case in CASES:
        yield case.name, worst(run(case))


def mutant_results() -> Iterator[tuple[str, Fit]]:
    """Every mutant on its ladder."""
    for name, (mutant, case) in MUTANTS.items():
        with mutant():
            yield name, worst(run(case))
