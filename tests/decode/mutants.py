"""Faults of public systems, put into the loop one by one: each must fail the test that guards against it."""

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from qspec_decode import levels
from qspec_decode.accept import standard
from qspec_decode.levels import ModelLevel
from qspec_decode.noise import Purpose
from qspec_decode.sampling import draw

_accept, _uniform, _decide = standard.accept, levels.uniform, ModelLevel._accept_drawn
Mutation = AbstractContextManager[Any]


def no_residual() -> Mutation:
    """A refused draft is replaced by a draw from p."""
    return patch.object(standard, "accept", _without_residual)


def lenience() -> Mutation:
    """Drafts stand where u < 1.05 p / q."""

    def lenient(ids: Tensor, num: Tensor, q: Tensor | None, p: Tensor, coins: Tensor, draws: Tensor) -> Any:
        return _accept(ids, num, q, p, coins / 1.05, draws)

    return patch.object(standard, "accept", lenient)


def stale_context() -> Mutation:
    """The residual or bonus token is drawn from the distribution one position too early."""

    def stale(ids: Tensor, num: Tensor, q: Tensor | None, p: Tensor, coins: Tensor, draws: Tensor) -> Any:
        accepted, _ = _accept(ids, num, q, p, coins, draws)
        stood = torch.arange(ids.shape[1]) < accepted[:, None]
        # coins that lead to the same decisions whatever the distribution
        decided = torch.where(stood, -1.0, torch.inf).double()
        return _accept(ids, num, q, torch.cat([p[:, :1], p[:, :-1]], 1), decided, draws)

    return patch.object(standard, "accept", stale)


def bonus_from_draft() -> Mutation:
    """Where all drafts stand, the token behind them is drawn from the draft's distribution."""

    def decide(self: Any, rows: Tensor, lengths: Tensor, proposal: Any, logits: Tensor) -> Any:
        drafted = proposal.num_tokens
        if self._index == 0 and bool(drafted.any()):
            texts, ends = self._run.buffer.texts, (lengths + drafted).tolist()
            last_two = [texts[row][end - 2 : end] for row, end in zip(rows.tolist(), ends, strict=True)]
            q = self._model.tables["mxfp4a8"][tuple(torch.tensor(last_two).T)]
            last = (drafted + 1).cumsum(0) - 1
            logits = logits.index_copy(0, last, torch.where(drafted[:, None] > 0, q, logits[last]))
        return _decide(self, rows, lengths, proposal, logits)

    return patch.object(ModelLevel, "_accept_drawn", decide)


def coin_reused() -> Mutation:
    """The number that refused a draft also draws its replacement."""
    return patch.object(levels, "uniform", lambda s, level, purpose, p: _uniform(s, level, Purpose.COIN, p))


def coin_shared() -> Mutation:
    """All rows of a batch decide with the first row's coins."""

    def shared(seeds: Tensor, level: int, purpose: Purpose, positions: Tensor) -> Tensor:
        return _uniform(
            seeds[:1].expand_as(seeds) if purpose is Purpose.COIN else seeds, level, purpose, positions
        )

    return patch.object(levels, "uniform", shared)


def noise_shared() -> Mutation:
    """The draft's draw and the residual's draw at a position use one number."""
    return patch.object(levels, "uniform", lambda s, level, purpose, p: _uniform(s, 0, purpose, p))


def inner_resamples() -> Mutation:
    """The middle level replaces a refused draft by a draw from its own p (TriForce's way)."""

    def decide(self: Any, rows: Tensor, lengths: Tensor, proposal: Any, logits: Tensor) -> Any:
        with patch.object(standard, "accept", _without_residual if self._index == 1 else _accept):
            return _decide(self, rows, lengths, proposal, logits)

    return patch.object(ModelLevel, "_accept_drawn", decide)


def inner_declares_draft() -> Mutation:
    """The middle level hands up the distributions of its draft in place of its own."""

    def decide(self: Any, rows: Tensor, lengths: Tensor, proposal: Any, logits: Tensor) -> Any:
        accepted, following, probs = _decide(self, rows, lengths, proposal, logits)
        if self._index == 1 and proposal.probs is not None:
            probs = torch.cat([proposal.probs, probs[:, -1:]], 1)
        return accepted, following, probs

    return patch.object(ModelLevel, "_accept_drawn", decide)


def no_rollback() -> Mutation:
    """What was computed for refused drafts stays in the caches."""
    return patch.object(ModelLevel, "keep", lambda self, rows, lengths: None)


def _without_residual(
    ids: Tensor, num: Tensor, q: Tensor | None, p: Tensor, coins: Tensor, draws: Tensor
) -> tuple[Tensor, Tensor]:
    accepted, _ = _accept(ids, num, q, p, coins, draws)
    row = torch.arange(len(ids))
    return accepted, draw(p[row, accepted], draws[row, accepted])
