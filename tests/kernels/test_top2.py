"""`top2`: what `argmax` chooses, and the two highest values."""

import pytest
import torch

import qspec_kernels as qk
from tests.kernels.cases import same_bits
from tests.kernels.test_sampling_ops import PIECE, WIDTHS

pytestmark = pytest.mark.usefixtures("poisoned", "threads")


@pytest.mark.parametrize("n", WIDTHS)
def test_top2(backend, rng, n):
    check_top2(rng, n)


def check_top2(rng, n):
    x = torch.randint(0, 10**6, (12, n), generator=rng).float() - 5e5
    x[1] = -torch.inf
    x[2, n // 2] = torch.nan
    x[3, -1] = torch.inf
    x[4, : n - 1] = -torch.inf
    # two that are equal, together and apart; the two highest at the ends
    x[5, -1], x[5, 0] = 6e5, 6e5
    x[6, n // 2 :][:2] = 6e5
    x[7, 0], x[7, -1] = 6e5, 7e5
    x[8, 0], x[8, -1] = 7e5, 6e5
    ids, values = qk.top2(x)
    assert same_bits(ids, qk.argmax(x))
    highest = [sorted(row, reverse=True)[:2] + [-torch.inf] * (n == 1) for row in x.tolist()]
    for choice, found, expected in zip(ids.tolist(), values, highest, strict=True):
        assert found.isnan().all() if choice < 0 else found.tolist() == expected
    assert all(map(same_bits, qk.top2(x.double()), (ids, values.double())))
    assert [out.shape for out in qk.top2(x.view(3, 4, n))] == [(3, 4), (3, 4, 2)]


@pytest.mark.parametrize(
    "wrong",
    [
        # the second of all that differ from the highest; of the same piece; of the row before
        lambda x, values: (x.where(x != values[:, :1], -torch.inf)).amax(1),
        lambda x, values: x[:, -PIECE:].topk(2).values[:, 1],
        lambda x, values: values[:, 1].roll(1),
    ],
)
def test_another_second_is_noticed(mutate, rng, wrong):
    def mutant(right, x):
        ids, values = right(x)
        return ids, torch.stack([values[:, 0], wrong(x, values)], 1)

    mutate("top2", mutant)
    with pytest.raises(AssertionError):
        check_top2(rng, 3 * PIECE + 5)
