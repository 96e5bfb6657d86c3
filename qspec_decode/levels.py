"""A level of the ladder that decodes with one precision of one model, alone or with a level below drafting.

What a level hands up is distributed exactly as it declares, because
its tokens come out of its own verification (accepted, residual or bonus alike) and because the number
of tokens is decided before they are drawn. That is what makes any depth lossless (design section 3).
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from qspec_decode import protocol
from qspec_decode.accept import greedy, standard
from qspec_decode.emission import Emission, margins_of, padded, rectangle, report
from qspec_decode.noise import Purpose, uniform
from qspec_decode.outlook import Outlook, margins
from qspec_decode.proposal import Level, Proposal, Run
from qspec_decode.protocol import Cache, Model
from qspec_decode.sampling import checked, draw, probabilities
from qspec_decode.stats import SpecDecodingStats


@dataclass
class SharedCache:
    """A KV cache and how much of each row of it is in use.

    Levels of one architecture share one instance. `valid[row]` leading positions hold keys and values
    of the tokens that stand in the buffer, computed by some level at or below the one that needs them
    next; a level's verification rewrites every position from its own last committed token on.
    """

    cache: Cache
    valid: Int64[Tensor, " batch"]


class ModelLevel:
    """One precision of one model, decoding alone or verifying what the level below drafts.

    Parameters
    ----------
    run
        Shared state of the call.
    model, precision
        What computes the logits.
    cache
        Shared with every other level of the same model.
    index
        0 for the target, counted downward; names the noise streams.
    draft_head
        Let the model use a cheaper output matrix where it has one.
    inner
        The level below with the number of tokens asked of it per round, or None.
    outlook
        Ends this level's drafting where its drafts are unlikely to stand above; None drafts all that is
        asked for.
    """

    num_bytes = None
    """Nothing is held for the next call (see `loop.Rounds`)."""
    _probabilities = staticmethod(probabilities)

    def __init__(
        self,
        run: Run,
        model: Model,
        precision: str,
        cache: SharedCache,
        *,
        index: int = 0,
        draft_head: bool = False,
        name: str = "",
        inner: "tuple[Level, int] | None" = None,
        outlook: Outlook | None = None,
    ):
        self.name = name or precision
        self.stats = SpecDecodingStats(inner[0].name) if inner else None
        self._run, self._model, self._precision, self._cache = run, model, precision, cache
        self._index, self._draft_head, self._inner = index, draft_head, inner
        self._outlook = outlook

    def prefill(self, rows: Int64[Tensor, " rows"], lengths: Int64[Tensor, " rows"]) -> None:
        """Compute keys and values of the prompts, all but each row's last token, here and below."""
        starts, ends = self._cache.valid[rows], (lengths - 1).clamp(max=self._model.max_positions)
        behind = starts < ends
        if bool(behind.any()):
            self._forward(rows[behind], starts[behind], ends[behind] - 1, ends[behind], "prefill")
        if self._inner:
            self._inner[0].prefill(rows, lengths)

    def keep(self, rows: Int64[Tensor, " rows"], lengths: Int64[Tensor, " rows"]) -> None:
        """Roll back: an integer per row. What lies in the cache beyond it is overwritten when needed."""
        self._cache.valid[rows] = torch.minimum(self._cache.valid[rows], lengths)
        if self._inner:
            self._inner[0].keep(rows, lengths)

    def propose(
        self, rows: Int64[Tensor, " rows"], lengths: Int64[Tensor, " rows"], counts: Int64[Tensor, " rows"]
    ) -> Proposal:
        """Extend each row by `counts` tokens; fewer where positions end, or drafts are unlikely to stand."""
        counts = torch.minimum(counts, self._model.max_positions - lengths).clamp(min=0)
        k = int(counts.max())
        if not self._inner and k:
            return self._draft_by_itself(rows, lengths, counts, k)
        ids = lengths.new_zeros(len(rows), k)
        probs = None
        leads = None if self._outlook is None else ids.new_zeros(ids.shape, dtype=torch.float32)
        likely = [1.0] * len(rows)
        done = torch.zeros_like(counts)
        while bool((left := counts - done).any()):
            at = left.nonzero()[:, 0]
            emission = self.round(rows[at], lengths[at] + done[at], left[at])
            if probs is None and emission.probs is not None:
                # every real place is filled below, and no other is read: a large vocabulary is worth that
                probs = emission.probs.new_empty(len(rows), k, self._model.vocab_size)
            for j in range(emission.ids.shape[1]):
                # column j of the emission is real for the rows that emitted more than j tokens
                real = emission.num_tokens > j
                to = at[real]
                ids[to, done[to] + j] = emission.ids[real, j]
                if probs is not None and emission.probs is not None:
                    source = emission.probs[:, j] if len(to) == len(at) else emission.probs[real, j]
                    probs.flatten(0, 1).index_copy_(0, to * k + done[to] + j, source)
                if leads is not None and emission.margins is not None:
                    leads[to, done[to] + j] = emission.margins[real, j]
            done[at] += emission.num_tokens
            if self._outlook and emission.margins is not None:
                found = zip(at.tolist(), emission.margins.tolist(), emission.num_tokens.tolist(), strict=True)
                for place, values, number in found:
                    likely[place] *= math.prod(self._outlook.chances(values[:number]))
                wanting = (counts > done).nonzero()[:, 0].tolist()
                if not self._outlook.pays([likely[place] for place in wanting], len(rows)):
                    break
        return Proposal(ids, done, probs, leads, self._outlook)

    def round(
        self,
        rows: Int64[Tensor, " rows"],
        lengths: Int64[Tensor, " rows"],
        limits: Int64[Tensor, " rows"],
        phase: str = "decode",
    ) -> Emission:
        """Draft, verify, accept, commit: 1 to k+1 tokens per row and never more than `limits`.

        Drafts are limited to limits - 1, so that a round never commits a token that must be cut. `phase` is
        as in `protocol.Model.forward`.
        """
        # lower levels move `valid` on past this level's own tokens, so the start is taken first
        starts = torch.minimum(self._cache.valid[rows], lengths - 1)
        proposal = self._draft(rows, lengths, limits)
        began = time.perf_counter()
        drafted = proposal.num_tokens
        logits = self._forward(rows, starts, lengths - 1, lengths + drafted, phase)
        accepted, following, probs = self._accept(rows, lengths, proposal, logits)
        if proposal.outlook is not None:
            report(proposal, accepted, logits)

        ends = lengths + accepted
        self._run.buffer.write(rows, ends, following)
        self.keep(rows, ends)
        # a round with nothing to draft for, such as the prefill, is no verification
        if self.stats and int(limits.max()) > 1:
            self.stats.record(drafted, accepted)
            self.stats.verify_time += time.perf_counter() - began
        ids = torch.cat([proposal.ids, following[:, None]], 1)
        ids.scatter_(1, accepted[:, None], following[:, None])
        leads = None if self._outlook is None else margins_of(logits, ids, drafted + 1)
        return Emission(ids, accepted + 1, drafted, accepted, probs, leads)

    def give_back(self) -> None:
        """End the use of all caches, here and below."""
        protocol.give_back(self._cache.cache)
        if self._inner and isinstance(self._inner[0], ModelLevel):
            self._inner[0].give_back()

    def all_stats(self) -> Iterator[SpecDecodingStats]:
        """Statistics of every draft level below, the nearest first."""
        if self._inner and self.stats:
            yield self.stats
            if isinstance(self._inner[0], ModelLevel):
                yield from self._inner[0].all_stats()

    def _draft(self, rows: Tensor, lengths: Tensor, limits: Tensor) -> Proposal:
        nothing = Proposal(lengths.new_zeros(len(rows), 0), torch.zeros_like(lengths), None)
        if not self._inner:
            return nothing
        level, num_speculative_tokens = self._inner
        counts = (limits - 1).clamp(max=num_speculative_tokens)
        if not bool(counts.any()):
            return nothing
        began = time.perf_counter()
        proposal = level.propose(rows, lengths, counts)
        if self.stats:
            self.stats.draft_time += time.perf_counter() - began
        return proposal

    def _draft_by_itself(self, rows: Tensor, lengths: Tensor, counts: Tensor, k: int) -> Proposal:
        """`propose` where nothing drafts for this level: a token at a time of the rows that want one more.

        It does what rounds without drafts do, with as little as possible beside the passes. They are short,
        and leave the processor's caches full of weights: whatever runs between them has to be fetched, so it
        is numbers, and tensors are made of them once.
        """
        left = [count for count in counts.tolist() if count]
        at = counts.nonzero()[:, 0]
        places, likely, probs = at.tolist(), [1.0] * len(at), None
        drafts: list[list[int]] = [[] for _ in range(len(rows))]
        leads: list[list[float]] = [[] for _ in range(len(rows))]
        going, ends = rows[at], lengths[at]
        starts = torch.minimum(self._cache.valid[going], ends - 1)
        logits = self._forward(going, starts, ends - 1, ends, "decode")
        for j in range(k):
            if self._run.sampling.greedy:
                chosen = self._most_probable(logits)
            else:
                drawn_from = self._probabilities(logits, self._run.sampling)
                chosen = draw(drawn_from, self._noise(going, ends[:, None])[1][:, 0])
                if probs is None:
                    probs = drawn_from.new_empty(len(rows), k, self._model.vocab_size)
                probs[at, j] = drawn_from
            for place, token in zip(places, chosen.tolist(), strict=True):
                drafts[place].append(token)
            more = [i for i, count in enumerate(left) if count > j + 1]
            if self._outlook:
                found = margins(logits, chosen).tolist()
                for place, lead in zip(places, found, strict=True):
                    leads[place].append(lead)
                likely = [a * b for a, b in zip(likely, self._outlook.chances(found), strict=True)]
                if not self._outlook.pays([likely[i] for i in more], len(rows)):
                    break
            if not more:
                break
            if len(more) < len(left):
                places, left, likely = (
                    [places[i] for i in more],
                    [left[i] for i in more],
                    [likely[i] for i in more],
                )
                kept = torch.tensor(more).to(at.device)
                at, going, ends, chosen = at[kept], going[kept], ends[kept], chosen[kept]
            logits = self._model.forward(
                chosen, going, ends, self._cache.cache, self._precision, draft_head=self._draft_head
            )
            ends = ends + 1
        ids, done = padded(drafts, k, lengths)
        row, column = (torch.arange(k, device=ids.device) < done[:, None]).nonzero(as_tuple=True)
        self._run.buffer.write(rows[row], lengths[row] + column, ids[row, column])
        # the last draft of a row has not been fed
        self._cache.valid[rows] = torch.where(counts > 0, lengths + done - 1, self._cache.valid[rows])
        margin = padded(leads, k, logits)[0] if self._outlook else None
        return Proposal(ids, done, probs, margin, self._outlook)

    def _forward(self, rows: Tensor, starts: Tensor, wanted: Tensor, ends: Tensor, phase: str) -> Tensor:
        """Run positions starts..ends-1; logits float32 [sum(ends - wanted), vocab], rows in order."""
        flat = self._run.buffer.flat(rows, starts, wanted, ends)
        logits = self._model.forward(
            flat.ids,
            flat.rows,
            flat.positions,
            self._cache.cache,
            self._precision,
            logits_at=flat.logits_at,
            draft_head=self._draft_head,
            phase=phase,
        )
        self._cache.valid[rows] = ends
        return logits

    def _accept(
        self, rows: Tensor, lengths: Tensor, proposal: Proposal, logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Decide; returns accepted counts, the following ids, and this level's distributions if sampled."""
        drafted, k = proposal.num_tokens, proposal.ids.shape[1]
        if self._run.sampling.greedy:
            target_ids = rectangle(self._most_probable(logits), drafted + 1, k + 1)
            return *greedy.accept(proposal.ids, drafted, target_ids), None
        probs = rectangle(self._probabilities(logits, self._run.sampling), drafted + 1, k + 1)
        coins, draws = self._noise(rows, lengths[:, None] + torch.arange(k + 1, device=lengths.device))
        accepted, following = standard.accept(proposal.ids, drafted, proposal.probs, probs, coins, draws)
        return accepted, following, probs

    def _most_probable(self, logits: Tensor) -> Tensor:
        """Greedy choices, refused where there is none; good until the next pass or choice."""
        return checked(protocol.most_probable(self._model, logits, self._cache.cache))

    def _noise(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Coins for all positions [rows, n] but the last, draws for all."""
        seeds = self._run.seeds[rows]
        coins = uniform(seeds, self._index, Purpose.COIN, positions[:, :-1])
        return coins, uniform(seeds, self._index, Purpose.DRAW, positions)
