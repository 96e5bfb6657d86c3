"""Levels whose rounds have fixed shapes and ask the device for nothing: what a CUDA graph can hold.

All rows take part in every pass. Where an eager round would leave a row out, or give it fewer drafts, tokens
without a meaning stand behind its last one: no token looks at later positions, and rows do not depend on each
other, so what is real comes out the same bit for bit.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from qspec_decode.accept import greedy
from qspec_decode.emission import rectangle
from qspec_decode.levels import ModelLevel
from qspec_decode.ngram import NgramLevel
from qspec_decode.noise import Purpose, stream, uniform_of
from qspec_decode.proposal import Drafts
from qspec_decode.protocol import Cache
from qspec_decode.sampling import draw, unchecked_probabilities
from qspec_decode.stats import SpecDecodingStats
from qspec_kernels import argmax


@dataclass(frozen=True)
class Block:
    """What a round of fixed shape commits: an `Emission` where the model is.

    Parameters
    ----------
    ids, num_tokens
        Committed ids padded on the right, and their number.
    num_draft_tokens, num_accepted_tokens, probs
        As in `Emission`.
    """

    ids: Int64[Tensor, "rows width"]
    num_tokens: Int64[Tensor, " rows"]
    num_draft_tokens: Int64[Tensor, " rows"]
    num_accepted_tokens: Int64[Tensor, " rows"]
    probs: Float[Tensor, "rows width vocab"] | None


class FixedLevel(ModelLevel):
    """A `ModelLevel` that can also run rounds of fixed shapes, over the same cache and buffer.

    Parameters are those of `ModelLevel`; `connect`, `restart` and, behind the last other round, `begin` come
    before the first fixed round.
    """

    _probabilities = staticmethod(unchecked_probabilities)

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.lag = 0
        """How many tokens before the last one may be missing in the cache."""
        self.counted: list[tuple[Tensor, Tensor]] = []
        """Per round since it was cleared, each row's tokens drafted for this level, and those that stood."""
        self._streams = torch.zeros(2, self.batch_size, 1, dtype=torch.int64, device=self._run.seeds.device)
        self._ranges: dict[int, Tensor] = {}

    @property
    def batch_size(self) -> int:
        """Rows of every call."""
        return len(self._run.seeds)

    @property
    def cache(self) -> Cache:
        """The keys and values it works on."""
        return self._cache.cache

    @property
    def below(self) -> "FixedLevel | FixedNgramLevel | None":
        """The level that drafts for this one."""
        level = self._inner[0] if self._inner else None
        assert level is None or isinstance(level, (FixedLevel, FixedNgramLevel))
        return level

    @property
    def num_speculative_tokens(self) -> int:
        """Tokens asked of the level below; 0 without one."""
        return self._inner[1] if self._inner else 0

    def connect(self) -> list["FixedLevel"]:
        """Set, from the target's level downward, how far behind each may be; returns the levels.

        The target is never behind, and neither is what shares its cache. A drafter with a cache of its own
        has not fed the last of its drafts when all of them stood. A level further down may not have been
        asked since the beginning of the target's last round, which committed at most K + 1 tokens.
        """
        levels: list[FixedLevel] = [self]
        most = self.num_speculative_tokens
        while isinstance(level := levels[-1].below, FixedLevel):
            shared = level._cache is levels[-1]._cache
            level.lag = levels[-1].lag if shared else 1 if len(levels) == 1 else most
            levels.append(level)
        return levels

    def restart(self) -> None:
        """Forget what has been computed, here and below, start new statistics and read the seeds."""
        self._cache.valid[:] = [0] * self.batch_size
        for state, purpose in zip(self._streams, (Purpose.COIN, Purpose.DRAW), strict=True):
            state.copy_(stream(self._run.seeds, self._index, purpose))
        if self.stats:
            self.stats = SpecDecodingStats(self.stats.name)
        if isinstance(self.below, FixedLevel):
            self.below.restart()

    def begin(self) -> None:
        """Go on in fixed rounds, here and below."""
        self._cache.fixed.copy_(torch.tensor(self._cache.valid))
        if isinstance(self.below, FixedLevel):
            self.below.begin()

    def fixed_round(
        self, lengths: Int64[Tensor, " batch"], limits: Int64[Tensor, " batch"], most: int
    ) -> tuple[Block, Bool[Tensor, " batch"]]:
        """As `round` for all rows; one whose limit is 0 commits nothing. No limit exceeds `most`.

        Also returns which rows met logits that no token can be chosen from.
        """
        active = limits > 0
        # lower levels move `valid` on past this level's own tokens, so the start is taken first
        starts = torch.minimum(self._cache.fixed, lengths - 1)
        proposal = self._fixed_draft(lengths, limits, most)
        drafted, k = proposal.num_tokens, proposal.ids.shape[1]
        logits = self._fixed_forward(lengths - 1, starts, k)
        accepted, following, probs = self._accept(lengths, proposal, logits)

        ends = lengths + accepted
        lost = ((following < 0) | (proposal.ids < 0).any(1)) & active
        self._run.buffer.ids.scatter_(1, ends[:, None], following.clamp(min=0)[:, None])
        self._cache.fixed.copy_(torch.where(active, ends, self._cache.fixed))
        if isinstance(self.below, FixedLevel):
            self.below.fixed_keep(ends)
        if k:
            self.counted.append((drafted, accepted))
        ids = torch.cat([proposal.ids, following[:, None]], 1)
        ids = ids.scatter(1, accepted[:, None], following[:, None])
        return Block(ids, (accepted + 1) * active, drafted, accepted, probs), lost

    def fixed_propose(
        self, lengths: Int64[Tensor, " batch"], counts: Int64[Tensor, " batch"], k: int
    ) -> Drafts:
        """As `propose` for all rows, at most k tokens each, in a number of rounds that is given.

        Alone, a level makes `counts` tokens. With a level below it may make fewer: how many depends on which
        drafts stood, which is known before the next token is drawn, so those that it made are distributed as
        it declares.
        """
        if self._model.max_positions < self._run.capacity:
            counts = torch.minimum(counts, self._model.max_positions - lengths).clamp(min=0)
        if not self._inner or k == 1:
            return self._draft_alone(lengths, counts, k)
        done, parts = torch.zeros_like(counts), []
        for number in range(self._num_rounds(k)):
            emission, _ = self.fixed_round(lengths + done, counts - done, k - number)
            parts.append((done, emission))
            done = done + emission.num_tokens
        return self._joined(parts, k, done)

    def fixed_keep(self, lengths: Int64[Tensor, " batch"]) -> None:
        """As `keep` for all rows."""
        self._cache.fixed.copy_(torch.minimum(self._cache.fixed, lengths))
        if isinstance(self.below, FixedLevel):
            self.below.fixed_keep(lengths)

    def _num_rounds(self, k: int) -> int:
        """Rounds that make k tokens if half of the drafts stand."""
        return min(k, -(-2 * k // (2 + self.num_speculative_tokens)))

    def _fixed_draft(self, lengths: Tensor, limits: Tensor, most: int) -> Drafts:
        k = min(self.num_speculative_tokens, most - 1)
        if self.below is None or k == 0:
            return Drafts(lengths.new_zeros(self.batch_size, 0), torch.zeros_like(lengths), None)
        return self.below.fixed_propose(lengths, (limits - 1).clamp(0, k), k)

    def _draft_alone(self, lengths: Tensor, counts: Tensor, k: int) -> Drafts:
        """k tokens of every row, one after the other, of which `counts` are real."""
        last = lengths - 1
        if self._model.max_positions < self._run.capacity:
            # rows that have outgrown this model: what they leave in its last positions is not looked at
            last = last.clamp(max=self.cache.capacity - k)
        starts = torch.minimum(self._cache.fixed, last)
        # no row that gets a token is farther behind; the others go on where their passes end
        last = torch.minimum(last, starts + self.lag)
        everyone, params = self._range(self.batch_size), self._run.sampling
        numbers = None if params.greedy else self._noise(everyone, lengths[:, None] + self._range(k))[1]
        tokens, probs = [], []
        for number in range(k):
            if number == 0:
                logits = self._fixed_forward(last, starts, 0)
            else:
                ids = tokens[-1].clamp(min=0)
                logits = self._model.forward(
                    ids, everyone, last + number, self.cache, self._precision, draft_head=self._draft_head
                )
            if numbers is None:
                # -1 where there is none, which the round finds
                tokens.append(argmax(logits))
            else:
                probs.append(self._probabilities(logits, params))
                tokens.append(draw(probs[-1], numbers[:, number]))
        ids = torch.stack(tokens, 1)
        self._run.buffer.ids.scatter_(1, lengths[:, None] + self._range(k), ids.clamp(min=0))
        # the last of them has not been fed
        valid = torch.where(counts > 0, lengths + counts - 1, self._cache.fixed)
        self._cache.fixed.copy_(valid)
        return Drafts(ids, counts, torch.stack(probs, 1) if probs else None)

    def _accept(
        self, lengths: Tensor, drafts: Drafts, logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Decide; returns accepted counts, the following ids, and this level's distributions if sampled."""
        if not self._run.sampling.greedy:
            return self._accept_drawn(self._range(self.batch_size), lengths, drafts, logits)
        drafted = drafts.num_tokens
        target_ids = rectangle(argmax(logits), drafted + 1, drafts.ids.shape[1] + 1)
        return *greedy.accept(drafts.ids, drafted, target_ids), None

    def _fixed_forward(self, last: Tensor, starts: Tensor, k: int) -> Tensor:
        """Run `lag` + 1 + k tokens of each row from `starts` on; logits [batch * (k + 1), vocab].

        They are those behind the token at position `last` and behind the k that follow it.
        """
        width = self.lag + 1 + k
        if self._model.max_positions < self._run.capacity:
            starts = starts.clamp(max=self.cache.capacity - width)
        positions = starts[:, None] + self._range(width)
        everyone = self._range(self.batch_size)
        logits_at = None
        if self.lag:
            first = everyone * width + (last - starts).clamp(max=self.lag)
            logits_at = (first[:, None] + self._range(k + 1)).flatten()
        return self._model.forward(
            self._run.buffer.ids.gather(1, positions).flatten(),
            everyone[:, None].expand(-1, width).flatten(),
            positions.flatten(),
            self.cache,
            self._precision,
            logits_at=logits_at,
            draft_head=self._draft_head,
        )

    def _joined(self, parts: list[tuple[Tensor, Block]], k: int, done: Tensor) -> Drafts:
        """What successive rounds committed, one behind the other."""
        k = min(k, sum(emission.ids.shape[1] for _, emission in parts))
        if len(parts) == 1:
            return Drafts(parts[0][1].ids, done, parts[0][1].probs)
        batch, probs = self.batch_size, parts[0][1].probs
        # what is not real goes into a column or row behind the others
        ids = done.new_zeros(batch, k + 1)
        probs = None if probs is None else probs.new_empty(batch * k + 1, probs.shape[2])
        for before, emission in parts:
            columns = self._range(emission.ids.shape[1])
            unreal = columns >= emission.num_tokens[:, None]
            to = before[:, None] + columns
            ids.scatter_(1, to.masked_fill(unreal, k), emission.ids)
            if probs is not None and emission.probs is not None:
                flat = (to + self._range(batch)[:, None] * k).masked_fill(unreal, batch * k)
                probs.index_copy_(0, flat.flatten(), emission.probs.flatten(0, 1))
        return Drafts(ids[:, :k], done, None if probs is None else probs[:-1].view(batch, k, -1))

    def _noise(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        # all but the positions went into the streams when the seeds came
        coins, draws = uniform_of(self._streams[:, rows], positions)
        return coins[:, :-1], draws

    def _range(self, count: int) -> Tensor:
        """0 .. count-1, made once."""
        if count not in self._ranges:
            self._ranges[count] = torch.arange(count, device=self._run.seeds.device)
        return self._ranges[count]


class FixedNgramLevel(NgramLevel):
    """An `NgramLevel` that can also look up all rows at once."""

    def fixed_propose(
        self, lengths: Int64[Tensor, " batch"], counts: Int64[Tensor, " batch"], k: int
    ) -> Drafts:
        """As `propose` for all rows, at most k tokens each."""
        ids = self._run.buffer.ids
        at = torch.arange(ids.shape[1], device=ids.device)
        begins = torch.zeros_like(lengths)
        same = at < lengths[:, None] - 1
        for n in range(1, self._longest + 1):
            # which places end n tokens that equal the last n: the windows of the step before, one longer
            last = ids.gather(1, (lengths - n).clamp(min=0)[:, None])
            same = same & (ids.roll(n - 1, 1) == last) & (at >= n - 1)
            if n >= self._shortest:
                behind = ((at + 1) * same).amax(1)
                begins = torch.where(behind > 0, behind, begins)
        num_tokens = torch.minimum(counts, lengths - begins) * (begins > 0)
        found = ids.gather(1, begins[:, None] + at[:k])
        ids.scatter_(1, lengths[:, None] + at[:k], found)
        return Drafts(found, num_tokens, None)
