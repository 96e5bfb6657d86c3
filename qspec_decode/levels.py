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
from qspec_decode.accept import standard
from qspec_decode.emission import Emission, compare, padded, rectangle
from qspec_decode.noise import Purpose, uniform
from qspec_decode.outlook import Outlook
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
        wanted = counts.tolist()
        places = [place for place, count in enumerate(wanted) if count]
        drafts: list[list[int]] = [[] for _ in wanted]
        margins: list[list[float]] = [[] for _ in wanted]
        if not self._inner and places:
            return self._draft_by_itself(rows, lengths, wanted)
        likely, probs = [1.0] * len(wanted), None
        while places:
            at = torch.tensor(places).to(rows.device)
            done = torch.tensor([len(drafts[place]) for place in places]).to(rows.device)
            emission = self.round(rows[at], lengths[at] + done, counts[at] - done)
            if probs is None and emission.probs is not None:
                # every real place is filled below, and no other is read: a large vocabulary is worth that
                probs = emission.probs.new_empty(len(rows), max(wanted), self._model.vocab_size)
            found = zip(places, emission.ids.tolist(), emission.num_tokens.tolist(), strict=True)
            for index, (place, ids, number) in enumerate(found):
                first = len(drafts[place])
                drafts[place] += ids[:number]
                if probs is not None and emission.probs is not None:
                    probs[place, first : first + number] = emission.probs[index, :number]
                if self._outlook and emission.margins is not None:
                    margins[place] += emission.margins[index]
                    likely[place] *= math.prod(self._outlook.chances(emission.margins[index]))
            places = [place for place in places if len(drafts[place]) < wanted[place]]
            if self._outlook and not self._outlook.pays([likely[place] for place in places], len(rows)):
                break
        ids, done = padded(drafts, lengths)
        return Proposal(ids, done, probs, margins if self._outlook else None, self._outlook)

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
        probs = margins = None
        if self._run.sampling.greedy:
            committed, margins = compare(proposal, logits, *self._choose(logits))
            ids, num_tokens = padded(committed, lengths)
            accepted, following = num_tokens - 1, torch.tensor([row[-1] for row in committed]).to(ids.device)
        else:
            accepted, following, probs = self._accept_drawn(rows, lengths, proposal, logits)
            ids = torch.cat([proposal.ids, following[:, None]], 1)
            ids.scatter_(1, accepted[:, None], following[:, None])
            num_tokens = accepted + 1

        ends = lengths + accepted
        self._run.buffer.write(rows, ends, following)
        self.keep(rows, ends)
        # a round with nothing to draft for, such as the prefill, is no verification
        if self.stats and int(limits.max()) > 1:
            self.stats.record(drafted, accepted)
            self.stats.verify_time += time.perf_counter() - began
        return Emission(ids, num_tokens, drafted, accepted, probs, margins)

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

    def _draft_by_itself(self, rows: Tensor, lengths: Tensor, counts: list[int]) -> Proposal:
        """`propose` where nothing drafts for this level: a token at a time of the rows that want one more.

        It does what rounds without drafts do, with as little as possible beside the passes. They are short,
        and leave the processor's caches full of weights: whatever runs between them has to be fetched, so it
        is numbers, and tensors are made of them once.
        """
        places = [place for place, count in enumerate(counts) if count]
        likely, probs = [1.0] * len(counts), None
        drafts: list[list[int]] = [[] for _ in counts]
        margins: list[list[float]] = [[] for _ in counts]
        at = torch.tensor(places).to(rows.device)
        going, ends = rows[at], lengths[at]
        starts = torch.minimum(self._cache.valid[going], ends - 1)
        logits = self._forward(going, starts, ends - 1, ends, "decode")
        while True:
            if self._run.sampling.greedy:
                chosen, leads = self._choose(logits)
            else:
                drawn_from = self._probabilities(logits, self._run.sampling)
                chosen, leads = draw(drawn_from, self._noise(going, ends[:, None])[1][:, 0]), []
                if probs is None:
                    probs = drawn_from.new_empty(len(rows), max(counts), self._model.vocab_size)
                probs[at, len(drafts[places[0]])] = drawn_from
            for place, token in zip(places, chosen.tolist(), strict=True):
                drafts[place].append(token)
            more = [i for i, place in enumerate(places) if len(drafts[place]) < counts[place]]
            if self._outlook:
                for place, lead, chance in zip(places, leads, self._outlook.chances(leads), strict=True):
                    margins[place].append(lead)
                    likely[place] *= chance
                if not self._outlook.pays([likely[places[i]] for i in more], len(rows)):
                    break
            if not more:
                break
            if len(more) < len(places):
                places = [places[i] for i in more]
                kept = torch.tensor(more).to(at.device)
                at, going, ends, chosen = at[kept], going[kept], ends[kept], chosen[kept]
            logits = self._model.forward(
                chosen, going, ends, self._cache.cache, self._precision, draft_head=self._draft_head
            )
            ends = ends + 1
        made = zip(rows.tolist(), lengths.tolist(), drafts, strict=True)
        written = [(row, length + j, token) for row, length, ids in made for j, token in enumerate(ids)]
        self._run.buffer.write(*torch.tensor(written).T.to(rows.device))
        ids, done = padded(drafts, lengths)
        # the last draft of a row has not been fed
        self._cache.valid[rows] = torch.where(done > 0, lengths + done - 1, self._cache.valid[rows])
        return Proposal(ids, done, probs, margins if self._outlook else None, self._outlook)

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

    def _choose(self, logits: Tensor) -> tuple[Tensor, list[float]]:
        """The greedy choice from each row, refused where there is none, and by how much it leads.

        Good until the next pass or choice.
        """
        ids, values = protocol.top2(self._model, logits, self._cache.cache)
        checked(ids.tolist())
        return ids, [highest - second for highest, second in values.tolist()]

    def _accept_drawn(
        self, rows: Tensor, lengths: Tensor, proposal: Proposal, logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decide by the standard rule: accepted counts, the following ids, this level's distributions."""
        drafted, k = proposal.num_tokens, proposal.ids.shape[1]
        probs = rectangle(self._probabilities(logits, self._run.sampling), drafted + 1, k + 1)
        coins, draws = self._noise(rows, lengths[:, None] + torch.arange(k + 1, device=lengths.device))
        accepted, following = standard.accept(proposal.ids, drafted, proposal.probs, probs, coins, draws)
        return accepted, following, probs

    def _noise(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Coins for all positions [rows, n] but the last, draws for all."""
        seeds = self._run.seeds[rows]
        coins = uniform(seeds, self._index, Purpose.COIN, positions[:, :-1])
        return coins, uniform(seeds, self._index, Purpose.DRAW, positions)
