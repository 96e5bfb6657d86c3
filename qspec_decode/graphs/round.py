"""`Round`: one decode round of a whole batch, from state to state, all of it on the device."""

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

    def read(self, block: Int64[Tensor, "batch columns"], rows: Int64[Tensor, " rows"]) -> Emission:
        """What a call committed to `rows`, from the copy of its result; counts drafts in the statistics.

        Raises
        ------
        QSpecError
            The model returned logits that no token can be chosen from.
        """
        block = block[rows]
        num_tokens, lost = block[:, 0], block[:, 1]
        if bool(lost.any()):
            raise not_finite()
        assert bool((num_tokens > 0).all()), "a row that goes on got no token"
        first = 2
        drafted = accepted = torch.zeros_like(num_tokens)
        for level in self._levels:
            for number in range(len(level.counted)):
                pair = block[:, first + 2 * number], block[:, first + 2 * number + 1]
                if level.stats:
                    level.stats.record(*pair)
                if level is self._top:
                    drafted, accepted = pair
            first += 2 * len(level.counted)
        return Emission(block[:, first:], num_tokens, drafted, accepted, None)
