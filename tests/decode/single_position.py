"""Rounds of the rejection rule on distributions that do not depend on the prefix: cases and mutants of B1."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec_decode.accept import standard
from qspec_decode.noise import Purpose, uniform
from qspec_decode.sampling import SamplingParams, draw, probabilities
from tests.decode.chi_square import Fit, fit


@dataclass(frozen=True)
class Case:
    """A target, a draft near to it or far from it, a temperature, and a number of drafts."""

    near: bool
    temperature: float
    k: int
    vocab: int = 16
    num_trials: int = 200_000
    seed: int = 11

    @property
    def name(self) -> str:
        kind = "near" if self.near else "far"
        return f"{kind} draft, T={self.temperature}, K={self.k}, V={self.vocab}"

    def logits(self) -> tuple[Tensor, Tensor]:
        """Target [k+1, vocab] and draft [k, vocab]."""
        generator = torch.Generator().manual_seed(self.seed)
        target = torch.randn(self.k + 1, self.vocab, generator=generator)
        noise = torch.randn(self.k, self.vocab, generator=generator) * 0.5
        return target, target[:-1] + noise if self.near else -target[:-1]


CASES = [Case(near, t, k) for near in (True, False) for t in (0.6, 1.0) for k in (1, 3)]
LARGE_CASES = [
    Case(near, 1.0, k, vocab=4096, num_trials=41_000) for near, k in ((True, 1), (True, 3), (False, 1))
]

# positions behind drafts that nearly always fall say little
ENOUGH = 5_000


@dataclass(frozen=True)
class Drafts:
    """Proposals of one block of trials, and what is declared about them: all that a mutant changes."""

    ids: Tensor
    num_tokens: Tensor
    q: Tensor | None


Proposer = Callable[[Case, Tensor, Tensor], Drafts]


def honest(case: Case, q: Tensor, noise: Tensor) -> Drafts:
    """Ids drawn from the q that is declared."""
    ids = draw(q.expand(len(noise), -1, -1), noise)
    return Drafts(ids, torch.full((len(noise),), case.k), q)


def unfiltered_declared(case: Case, q: Tensor, noise: Tensor) -> Drafts:
    """Drawn from the four most probable ids, declared as drawn from all."""
    kept = q.masked_fill(q < q.topk(4).values[..., -1:], 0.0)
    return Drafts(draw(kept.expand(len(noise), -1, -1), noise), torch.full((len(noise),), case.k), q)


def unlikely_dropped(case: Case, q: Tensor, noise: Tensor) -> Drafts:
    """A draft is dropped, with all behind it, after its low probability was seen."""
    found = honest(case, q, noise)
    likely = q.expand(len(noise), -1, -1).gather(2, found.ids[..., None])[..., 0] > 0.06
    return Drafts(found.ids, likely.long().cumprod(1).sum(1), q)


def greedy_as_drawn(case: Case, q: Tensor, noise: Tensor) -> Drafts:
    """The most probable id, declared as drawn from q."""
    ids = q.argmax(-1).expand(len(noise), -1)
    return Drafts(ids, torch.full((len(noise),), case.k), q)


def greedy_declared(case: Case, q: Tensor, noise: Tensor) -> Drafts:
    """The most probable id, declared as not drawn: no mutant, the way of greedy drafts and n-grams."""
    return Drafts(q.argmax(-1).expand(len(noise), -1), torch.full((len(noise),), case.k), None)


MUTANTS: dict[str, Proposer] = {
    "unfiltered q declared": unfiltered_declared,
    "unlikely draft dropped after drawing": unlikely_dropped,
    "greedy draft declared as drawn": greedy_as_drawn,
}


def run(case: Case, propose: Proposer = honest) -> list[Fit]:
    """Fit of the emitted ids at every position that enough trials reached, the first always among them."""
    params = SamplingParams(temperature=case.temperature)
    p, q = (probabilities(logits, params) for logits in case.logits())
    emitted: list[list[Tensor]] = [[] for _ in range(case.k + 1)]
    block = 2**20 // case.vocab
    for first in range(0, case.num_trials, block):
        rows = torch.arange(first, min(first + block, case.num_trials))
        seeds = torch.stack([torch.full_like(rows, case.seed), rows], 1)
        positions = torch.arange(case.k + 1).expand(len(rows), -1)
        drafts = propose(case, q, uniform(seeds, 1, Purpose.DRAW, positions[:, :-1]))
        accepted, following = standard.accept(
            drafts.ids,
            drafts.num_tokens,
            None if drafts.q is None else drafts.q.expand(len(rows), -1, -1),
            p.expand(len(rows), -1, -1),
            uniform(seeds, 0, Purpose.COIN, positions[:, :-1]),
            uniform(seeds, 0, Purpose.DRAW, positions),
        )
        for j in range(case.k + 1):
            if j < case.k:
                emitted[j].append(drafts.ids[accepted > j, j])
            emitted[j].append(following[accepted == j])
    reached = [(torch.cat(ids), p[j]) for j, ids in enumerate(emitted)]
    return [fit(ids, probs) for ids, probs in reached if len(ids) >= ENOUGH]


def worst(fits: list[Fit]) -> Fit:
    """The fit that comes nearest to its threshold, or passes it by most."""
    return max(fits, key=lambda f: f.chi_square / f.threshold)


def results() -> Iterator[tuple[str, Fit]]:
    """Every case; of its positions the worst."""
    for case in CASES + LARGE_CASES:
        yield case.name, worst(run(case))
    for case in (case for case in CASES if case.near):
        yield f"greedy, {case.name}", worst(run(case, greedy_declared))


def mutant_results() -> Iterator[tuple[str, Fit]]:
    """Every mutant on the case where it is weakest to see: a near draft, one token."""
    for name, mutant in MUTANTS.items():
        yield name, worst(run(Case(True, 1.0, 1), mutant))
