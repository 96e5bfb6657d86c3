"""A model whose probabilities are known: a table over the last two tokens, one table per precision."""

import torch
from torch import Tensor


class TokenCache:
    """Remembers ids by row and position. Fresh memory and rolled-back positions hold wrong ids on purpose."""

    def __init__(self, batch: int, capacity: int):
        self.batch, self.capacity = batch, capacity
        self.ids = torch.full((batch, capacity), -1, dtype=torch.int64)


class TabularModel:
    """Second-order Markov chain behind the `Model` protocol.

    The token before the last comes out of the cache, so that a wrong position, a missing token or a
    roll-back gone wrong changes the distribution.

    Parameters
    ----------
    tables
        Per precision, logits [vocab, vocab, vocab] indexed by the token before the last, the last
        token, the next one. At position 0 the token before the last counts as 0.
    """

    def __init__(
        self, tables: dict[str, Tensor], max_positions: int = 4096, eos_token_ids: tuple[int, ...] = ()
    ):
        self.tables = tables
        self.precisions = tuple(tables)
        self.vocab_size = next(iter(tables.values())).shape[-1]
        self.max_positions = max_positions
        self.eos_token_ids = eos_token_ids
        self.calls: list[tuple[str, int]] = []
        # whether what is fed is checked, for which the device is waited for
        self.checked = True

    def new_cache(self, batch_size: int, capacity: int, precision: str) -> TokenCache:
        return TokenCache(batch_size, capacity)

    def forward(
        self,
        ids: Tensor,
        rows: Tensor,
        positions: Tensor,
        cache: TokenCache,
        precision: str,
        *,
        logits_at: Tensor | None = None,
        draft_head: bool = False,
        phase: str = "decode",
    ) -> Tensor:
        self.calls.append((precision, len(ids)))
        cache.ids[rows, positions] = ids
        before = cache.ids[rows, (positions - 1).clamp(min=0)]
        before = torch.where(positions > 0, before, 0)
        if self.checked:
            assert bool((before >= 0).all()), "a token was fed whose predecessor is not in the cache"
        at = slice(None) if logits_at is None else logits_at
        return self.tables[precision][before[at], ids[at]]


def random_tables(vocab: int, seed: int, noise: dict[str, float], scale: float = 1.5) -> dict[str, Tensor]:
    """A table of normal logits under "bf16", and noisier copies of it under the other names."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(vocab, vocab, vocab, generator=generator) * scale
    tables = {"bf16": base}
    for name, amount in noise.items():
        tables[name] = base + torch.randn(base.shape, generator=generator) * amount
    return tables
