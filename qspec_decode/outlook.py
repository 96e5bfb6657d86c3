"""How likely greedy drafts are to stand, judged by their margins and by how drafts have fared so far.

A cast of the model above, or its smaller sibling, mostly errs where two tokens are nearly tied, and it knows
where that is. Drafting on behind such a token is mostly wasted; behind all others it is not.
"""

import math
from collections.abc import Sequence

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
        self._sums = (0.0,) * 6
        self.learn(*zip(*_FIRST, strict=True))

    def learn(self, margins: Sequence[float], verified: Sequence[float]) -> None:
        """Take in drafts' margins, and beside each the verifier's margin of the same token."""
        # numbers and no tensors: they are few, and this runs between two passes
        for own, other in zip(margins, verified, strict=True):
            x, y = (max(-_LARGEST, min(m, _LARGEST)) for m in (own, other))
            found = 1.0, x, y, x * x, x * y, y * y
            self._sums = tuple(a + b for a, b in zip(self._sums, found, strict=True))

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
        lines = ((min(margin, _LARGEST) - x / n) * slope + y / n for margin in margins)
        return [math.erfc(-line / spread / math.sqrt(2)) / 2 for line in lines]
