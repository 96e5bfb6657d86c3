"""How likely greedy drafts are to stand, judged by their margins and by how drafts have fared so far.

A cast of the model above, or its smaller sibling, mostly errs where two tokens are nearly tied, and it knows
where that is. Drafting on behind such a token is mostly wasted; behind all others it is not.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# what one more row adds to a verification, in passes of one row
_ROW = 0.02

# what is believed before anything was seen: margins of up to two agree, give or take a half
_FIRST = ((0.0, -0.5), (0.0, 0.5), (2.0, 1.5), (2.0, 2.5))
# larger margins decide nothing, and a vocabulary of one real token has an infinite one
_LARGEST = 100.0


def threshold(cost: float) -> float:
    """The chance below which another draft is not worth what it takes.

    Drafting on takes `cost` for the draft and a little for its row in the verification. Without it decoding
    makes S tokens in the time of a pass of the verifier. S, the speed-up, is 1 for a draft that costs as much
    as its verifier and about 2 for one that costs next to nothing: 2 / (1 + cost).

    Parameters
    ----------
    cost
        A pass of the draft over a pass of the verifier, well below 1.
    """
    return 2 * (cost + _ROW) / (1 + cost)


class Outlook:
    """What the level above thinks of the drafts of the level below, throughout a call.

    A token's margin is by how much its logit leads the highest of the others. For a draft, the verifier's
    margin of the same token is negative exactly where it is refused. It is taken to be normal around a line
    in the draft's own margin; line and spread are those of least squares over all pairs that were seen.

    Parameters
    ----------
    threshold
        Drafting ends when the chance that all drafts of a round stand is less, on average over the rows.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._sums = [0.0] * 6
        first = torch.tensor(_FIRST)
        self.learn(first[:, 0], first[:, 1])

    def learn(self, margins: Float[Tensor, " n"], verified: Float[Tensor, " n"]) -> None:
        """Take in drafts' margins, and beside each the verifier's margin of the same token."""
        x, y = (m.double().clamp(-_LARGEST, _LARGEST) for m in (margins, verified))
        found = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y]).sum(1)
        self._sums = [a + b for a, b in zip(self._sums, found.tolist(), strict=True)]

    def pays(self, likely: Sequence[float], num_rows: int) -> bool:
        """Whether another draft pays for rows whose drafts so far all stand with these chances.

        A pass takes nearly as long for one row as for all `num_rows` of a batch, so what counts is how many
        of them it is likely to serve.
        """
        return sum(likely) >= self.threshold * num_rows

    def chances(self, margins: Sequence[float]) -> list[float]:
        """The chance that a draft of each margin stands."""
        n, x, y, xx, xy, yy = self._sums
        # none of the two is zero: the first four pairs lie at two places, and not on one line
        sxx, sxy = xx - x * x / n, xy - x * y / n
        slope = sxy / sxx
        spread = math.sqrt((yy - y * y / n - slope * sxy) / n)
        # numbers and no tensors: they are few, and this runs between two passes
        lines = ((min(margin, _LARGEST) - x / n) * slope + y / n for margin in margins)
        return [math.erfc(-line / spread / math.sqrt(2)) / 2 for line in lines]


def margins(logits: Float[Tensor, "n vocab"], ids: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """By how much each id's logit leads the highest of the others; negative where another one leads."""
    places = ids[:, None]
    # a copy of the logits of a large vocabulary would take longer than all else here, so each is put out of
    # the way for a moment; inference mode lets that be done to tensors made in it, too
    with torch.inference_mode():
        own = logits.gather(1, places)
        logits.scatter_(1, places, -torch.inf)
        others = logits.amax(1)
        logits.scatter_(1, places, own)
    return own[:, 0] - others
