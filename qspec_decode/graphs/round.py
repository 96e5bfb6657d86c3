"""`Round`: one decode round of a whole batch, from state to state, all of it on the device."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from qspec_decode.emission import Emission
from qspec_decode.fixed import FixedLevel
from qspec_decode.sampling import not_finite


class Round:
    """Draft, verify, accept and commit as a function of tensors that stay where they are.

    It decides nothing on the host and waits for nothing, so a CUDA graph can hold it. Rows that have ended
    take part and commit nothing: running a round too many changes nothing.

    Parameters
    ----------
    top
        The target's level.
    eos
        Ids that end a row, on the device; may be empty.
    """

    def __init__(self, top: FixedLevel, eos: Int64[Tensor, " ids"]):
        self._top, self._eos = top, eos
        self._levels = top.connect()
        batch = top.batch_size
        # how long each row is and where it must end; a row that no prompt has come for has ended
        self.lengths = torch.ones(batch, dtype=torch.int64, device=eos.device)
        self.ends = torch.ones_like(self.lengths)
        self.finished = torch.ones(batch, dtype=torch.bool, device=eos.device)

    def __call__(self) -> Int64[Tensor, "batch columns"]:
        """Run it. What it committed comes in a form that one copy takes to the host; see `read`."""
        for level in self._levels:
            level.counted.clear()
        limits = (self.ends - self.lengths).masked_fill(self.finished, 0)
        emission, lost = self._top.fixed_round(self.lengths, limits, self._top.num_speculative_tokens + 1)
        self.lengths += emission.num_tokens
        width = emission.ids.shape[1]
        real = torch.arange(width, device=self._eos.device) < emission.num_tokens[:, None]
        stopped = ((emission.ids[..., None] == self._eos).any(-1) & real).any(1)
        self.finished |= stopped | (self.lengths == self.ends)
        counts = [count for level in self._levels for pair in level.counted for count in pair]
        return torch.cat([torch.stack([emission.num_tokens, lost, *counts], 1), emission.ids], 1)

    def read(self, block: Int64[Tensor, "batch columns"], rows: Sequence[int]) -> Emission:
        """What a call committed to `rows`, from the copy of its result; counts drafts in the statistics.

        Raises
        ------
        QSpecError
            The model returned logits that no token can be chosen from.
        """
        columns = [list(column) for column in zip(*block[list(rows)].tolist(), strict=True)]
        num_tokens, lost = columns[:2]
        del columns[:2]
        if any(lost):
            raise not_finite()
        assert all(num_tokens), "a row that goes on got no token"
        drafted = accepted = [0] * len(num_tokens)
        for level in self._levels:
            for number in range(len(level.counted)):
                pair = columns[2 * number], columns[2 * number + 1]
                if level.stats:
                    level.stats.record(*pair)
                if level is self._top:
                    drafted, accepted = pair
            del columns[: 2 * len(level.counted)]
        ids = [list(row[:count]) for row, count in zip(zip(*columns, strict=True), num_tokens, strict=True)]
        return Emission(ids, drafted, accepted)
