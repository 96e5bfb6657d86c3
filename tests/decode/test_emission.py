"""What a round commits of ragged drafts, and what their drafter is told."""

from collections.abc import Sequence

import torch

from qspec_decode.emission import compare
from qspec_decode.outlook import Outlook
from qspec_decode.proposal import Proposal


class Told(Outlook):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.pairs: list[tuple[list[float], list[float]]] = []
        super().__init__(0.5)

    def learn(self, margins: Sequence[float], verified: Sequence[float]) -> None:
        self.pairs.append((list(margins), list(verified)))


def test_every_row_commits_and_tells_its_own() -> None:
    # highest at 0, 1, 2, 3, 4, 5, ahead of the next one by 1, 2, 3, 4, 5, 6
    logits = torch.diag(torch.arange(1.0, 7.0))
    best, values = list(range(6)), [[float(lead), 0.0] for lead in range(1, 7)]
    drafts: list[list[int]] = [[0, 5], [], [4]]
    outlook = Told()
    del outlook.pairs[:]
    margins = [[0.1, 0.2], [], [0.3]]
    proposal = Proposal(drafts, None, margins, outlook)
    committed, found = compare(proposal, logits, best, values)
    # the first row's second draft is refused; the second had none; of the third row the one stands
    assert committed == [[0, 1], [3], [4, 5]]
    assert found == [[1.0, 2.0], [4.0], [5.0, 6.0]]
    assert outlook.pairs == [([0.1, 0.2], [1.0, -2.0]), ([], []), ([0.3], [5.0])]
