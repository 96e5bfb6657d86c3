"""Chi-square against an exact distribution; `python -m tests.decode.chi_square` prints all cases."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fit:
    """How well counts fit a distribution.

    `threshold` is df + 10 sqrt(2 df), ten standard deviations above what a right sampler gives;
    `total_variation` is half the sum of |share - probability|.
    """

    chi_square: float
    df: int
    total_variation: float
    num_trials: int

    @property
    def threshold(self) -> float:
        return self.df + 10 * math.sqrt(2 * self.df)

    @property
    def passes(self) -> bool:
        return self.chi_square < self.threshold

    @property
    def caught(self) -> bool:
        """A mutant has to miss by far, or the test would be too weak to trust."""
        return self.chi_square > 5 * self.threshold

    def __str__(self) -> str:
        return (
            f"chi-square {self.chi_square:10.1f}   df {self.df:4d}   threshold {self.threshold:6.1f}   "
            f"TV {self.total_variation:.4f}   n {self.num_trials}"
        )


def fit(ids: Tensor, probs: Tensor) -> Fit:
    """Compare outcomes (ids of cells, any shape) with the probabilities of the cells (any shape, flattened).

    Cells that expect fewer than 5 are counted as one; an outcome of probability 0 makes the sum infinite.
    """
    probs = probs.double().flatten()
    counts = torch.bincount(ids.flatten(), minlength=len(probs)).double()
    n = int(counts.sum())
    total_variation = float((counts / n - probs).abs().sum() / 2)
    if bool((counts[probs == 0] > 0).any()):
        return Fit(math.inf, int((probs > 0).sum()) - 1, total_variation, n)
    order = probs.argsort(descending=True)
    expected, seen = (probs * n)[order], counts[order]
    # the smallest cells, as many as it takes for each one left to expect 5
    large = int((expected >= 5).sum())
    if float(expected[large:].sum()) < 5:
        large -= 1
    expected = torch.cat([expected[:large], expected[large:].sum()[None]])
    seen = torch.cat([seen[:large], seen[large:].sum()[None]])
    real = expected > 0
    chi_square = float(((seen - expected)[real] ** 2 / expected[real]).sum())
    return Fit(chi_square, int(real.sum()) - 1, total_variation, n)


def cells(tokens: Tensor, vocab: int) -> Tensor:
    """One number per row of tokens [n, length], as the flattened joint distribution counts them."""
    place = vocab ** torch.arange(tokens.shape[1] - 1, -1, -1)
    return (tokens * place).sum(1)


def main() -> None:
    """Print the table."""
    from tests.decode import joint, single_position

    torch.set_num_threads(1)
    for title, results in (
        ("B1 single position", single_position.results()),
        ("B1 mutants (must exceed 5 thresholds)", single_position.mutant_results()),
        ("B4, B6 joint distribution over the whole loop", joint.results()),
        ("B4, B6 mutants (must exceed 5 thresholds)", joint.mutant_results()),
    ):
        print(title)
        for name, found in results:
            print(f"  {name:52s} {found}", flush=True)


if __name__ == "__main__":
    main()
