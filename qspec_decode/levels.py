"""A level of the ladder that decodes with one precision of one model, alone or with a level below drafting.

What a level hands up is distributed exactly as it declares, because its tokens come out of its own
verification (accepted, residual or bonus alike) and because the number of tokens is decided before they are
drawn. That is what makes any depth lossless (design section 3).
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from qspec_decode import protocol
from qspec_decode.accept import standard
from qspec_decode.emission import Emission, compare, padded, rectangle
from qspec_decode.noise import Purpose, uniform
from qspec_decode.outlook import Outlook
from qspec_decode.proposal import Drafts, Level, Proposal, Run
from qspec_decode.protocol import Cache, FlatTokens, Model
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
    valid: list[int]
    fixed: Int64[Tensor, " batch"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """The same where the model is, once rounds of fixed shapes have begun."""


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

    num_bytes = None  # nothing is held for the next call (see `loop.Rounds`)
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

    def prefill(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Compute keys and values of the prompts, all but each row's last token, here and below."""
        ends = [min(length - 1, self._model.max_positions) for length in lengths]
        behind = [(row, self._cache.valid[row], end) for row, end in zip(rows, ends, strict=True)]
        behind = [(row, start, end) for row, start, end in behind if start < end]
        if behind:
            at, starts, ends = map(list, zip(*behind, strict=True))
            self._forward(at, starts, [end - 1 for end in ends], ends, "prefill")
        if self._inner:
            self._inner[0].prefill(rows, lengths)

    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Roll back: an integer per row. What lies in the cache beyond it is overwritten when needed."""
        for row, length in zip(rows, lengths, strict=True):
            self._cache.valid[row] = min(self._cache.valid[row], length)
        if self._inner:
            self._inner[0].keep(rows, lengths)

    def propose(self, rows: Sequence[int], lengths: Sequence[int], counts: Sequence[int]) -> Proposal:
        """Extend each row by `counts` tokens; fewer where positions end, or drafts are unlikely to stand."""
        room = [max(0, self._model.max_positions - length) for length in lengths]
        wanted = [min(count, most) for count, most in zip(counts, room, strict=True)]
        if not self._inner and any(wanted):
            return self._draft_by_itself(rows, lengths, wanted)
        drafts: list[list[int]] = [[] for _ in rows]
        margins: list[list[float]] = [[] for _ in rows]
        likely, probs = [1.0] * len(wanted), None
        places = [place for place, count in enumerate(wanted) if count]
        while places:
            emission = self.round(
                [rows[place] for place in places],
                [lengths[place] + len(drafts[place]) for place in places],
                [wanted[place] - len(drafts[place]) for place in places],
            )
            if probs is None and emission.probs is not None:
                # every real place is filled below, and no other is read: a large vocabulary is worth that
                probs = emission.probs.new_empty(len(rows), max(wanted), self._model.vocab_size)
            for index, (place, ids) in enumerate(zip(places, emission.ids, strict=True)):
                if probs is not None and emission.probs is not None:
                    first = len(drafts[place])
                    probs[place, first : first + len(ids)] = emission.probs[index, : len(ids)]
                if self._outlook and emission.margins is not None:
                    margins[place] += emission.margins[index]
                    likely[place] *= math.prod(self._outlook.chances(emission.margins[index]))
                drafts[place] += ids
            places = [place for place in places if len(drafts[place]) < wanted[place]]
            if self._outlook and not self._outlook.pays([likely[place] for place in places], len(rows)):
                break
        return Proposal(drafts, probs, margins if self._outlook else None, self._outlook)

    def round(
        self, rows: Sequence[int], lengths: Sequence[int], limits: Sequence[int], phase: str = "decode"
    ) -> Emission:
        """Draft, verify, accept, commit: 1 to k+1 tokens per row and never more than `limits`.

        Drafts are limited to limits - 1, so that a round never commits a token that must be cut. `phase` is
        as in `protocol.Model.forward`.
        """
        # lower levels move `valid` on past this level's own tokens, so the start is taken first
        last = [length - 1 for length in lengths]
        starts = [min(self._cache.valid[row], end) for row, end in zip(rows, last, strict=True)]
        proposal = self._draft(rows, lengths, limits)
        began = time.perf_counter()
        drafted = [len(ids) for ids in proposal.ids]
        ends = [length + count for length, count in zip(lengths, drafted, strict=True)]
        logits = self._forward(rows, starts, last, ends, phase)
        probs = margins = None
        if self._run.sampling.greedy:
            committed, margins = compare(proposal, logits, *self._choose(logits))
        else:
            committed, probs = self._draw(rows, lengths, proposal, logits)

        accepted = [len(ids) - 1 for ids in committed]
        ends = [length + count for length, count in zip(lengths, accepted, strict=True)]
        for row, end, ids in zip(rows, ends, committed, strict=True):
            self._run.buffer.write(row, end, ids[-1:])
        self.keep(rows, ends)
        # a round with nothing to draft for, such as the prefill, is no verification
        if self.stats and max(limits) > 1:
            self.stats.record(drafted, accepted)
            self.stats.verify_time += time.perf_counter() - began
        return Emission(committed, drafted, accepted, probs, margins)

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

    def _draft(self, rows: Sequence[int], lengths: Sequence[int], limits: Sequence[int]) -> Proposal:
        most = self._inner[1] if self._inner else 0
        counts = [min(limit - 1, most) for limit in limits]
        if not self._inner or not any(counts):
            return Proposal([[] for _ in rows], None)
        began = time.perf_counter()
        proposal = self._inner[0].propose(rows, lengths, counts)
        if self.stats:
            self.stats.draft_time += time.perf_counter() - began
        return proposal

    def _draft_by_itself(
        self, rows: Sequence[int], lengths: Sequence[int], counts: Sequence[int]
    ) -> Proposal:
        """`propose` where nothing drafts for this level: a token at a time of the rows that want one more."""
        places = [place for place, count in enumerate(counts) if count]
        likely, probs = [1.0] * len(counts), None
        drafts: list[list[int]] = [[] for _ in counts]
        margins: list[list[float]] = [[] for _ in counts]
        going, ends = [rows[place] for place in places], [lengths[place] for place in places]
        last = [end - 1 for end in ends]
        starts = [min(self._cache.valid[row], end) for row, end in zip(going, last, strict=True)]
        logits = self._forward(going, starts, last, ends, "decode")
        while True:
            if self._run.sampling.greedy:
                tokens, values = self._choose(logits)
            else:
                drawn_from = self._probabilities(logits, self._run.sampling)
                made = [(rows[place], lengths[place] + len(drafts[place]), place) for place in places]
                row, position, at = torch.tensor(made).T.to(logits.device)
                tokens, values = draw(drawn_from, self._noise(row, position[:, None])[1][:, 0]).tolist(), []
                if probs is None:
                    probs = drawn_from.new_empty(len(rows), max(counts), self._model.vocab_size)
                probs[at, len(drafts[places[0]])] = drawn_from
            for place, token in zip(places, tokens, strict=True):
                drafts[place].append(token)
            if self._outlook:
                leads = [highest - second for highest, second in values]
                for place, lead, chance in zip(places, leads, self._outlook.chances(leads), strict=True):
                    margins[place].append(lead)
                    likely[place] *= chance
            places = [place for place in places if len(drafts[place]) < counts[place]]
            if not places:
                break
            if self._outlook and not self._outlook.pays([likely[place] for place in places], len(rows)):
                break
            fed = FlatTokens(
                [drafts[place][-1] for place in places],
                [rows[place] for place in places],
                [lengths[place] + len(drafts[place]) - 1 for place in places],
            )
            logits = protocol.forward(
                self._model, fed, self._cache.cache, self._precision, draft_head=self._draft_head
            )
        for row, length, ids in zip(rows, lengths, drafts, strict=True):
            if ids:
                self._run.buffer.write(row, length, ids)
                # the last one has not been fed
                self._cache.valid[row] = length + len(ids) - 1
        return Proposal(drafts, probs, margins if self._outlook else None, self._outlook)

    def _forward(
        self,
        rows: Sequence[int],
        starts: Sequence[int],
        wanted: Sequence[int],
        ends: Sequence[int],
        phase: str,
    ) -> Tensor:
        """Run positions starts..ends-1; logits float32 [sum(ends - wanted), vocab], rows in order."""
        logits = protocol.forward(
            self._model,
            self._run.buffer.flat(rows, starts, wanted, ends),
            self._cache.cache,
            self._precision,
            draft_head=self._draft_head,
            phase=phase,
        )
        for row, end in zip(rows, ends, strict=True):
            self._cache.valid[row] = end
        return logits

    def _choose(self, logits: Tensor) -> tuple[list[int], list[list[float]]]:
        """The greedy choice from each row, refused where there is none, and its two highest logits."""
        ids, values = protocol.top2(self._model, logits, self._cache.cache)
        return checked(ids.tolist()), values.tolist()

    def _draw(
        self, rows: Sequence[int], lengths: Sequence[int], proposal: Proposal, logits: Tensor
    ) -> tuple[list[list[int]], Tensor]:
        """Decide by the standard rule: what each row commits, and this level's distributions."""
        at = torch.tensor((rows, lengths)).to(logits.device)
        drafts = Drafts(*padded(proposal.ids, logits.device), proposal.probs)
        accepted, following, probs = self._accept_drawn(at[0], at[1], drafts, logits)
        decided = zip(proposal.ids, accepted.tolist(), following.tolist(), strict=True)
        return [[*ids[:n], token] for ids, n, token in decided], probs

    def _accept_drawn(
        self, rows: Tensor, lengths: Tensor, drafts: Drafts, logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Accepted counts, the ids that follow them, and this level's distributions."""
        drafted, k = drafts.num_tokens, drafts.ids.shape[1]
        probs = rectangle(self._probabilities(logits, self._run.sampling), drafted + 1, k + 1)
        coins, draws = self._noise(rows, lengths[:, None] + torch.arange(k + 1, device=lengths.device))
        accepted, following = standard.accept(drafts.ids, drafted, drafts.probs, probs, coins, draws)
        return accepted, following, probs

    def _noise(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Coins for all positions [rows, n] but the last, draws for all."""
        seeds = self._run.seeds[rows]
        coins = uniform(seeds, self._index, Purpose.COIN, positions[:, :-1])
        return coins, uniform(seeds, self._index, Purpose.DRAW, positions)
