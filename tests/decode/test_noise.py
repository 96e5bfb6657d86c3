"""Noise is the stated function of its four words, and looks like noise along each of them."""

import pytest
import torch
from torch import Tensor

from qspec_decode.noise import Purpose, parse_seed, row_seeds, uniform
from qspec_kernels import UsageError
from tests.decode.chi_square import fit

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def finalise(state: int) -> int:
    """SplitMix64's output function on Python integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def expected(seed: tuple[int, int], level: int, purpose: int, position: int) -> float:
    state = finalise((seed[0] + GOLDEN) & MASK)
    for word in (seed[1], 2 * level + purpose, position):
        state = finalise(((state ^ word) + GOLDEN) & MASK)
    return (state >> 11) / 2**53


def numbers(seed: int, rows: int, level: int, purpose: Purpose, n: int) -> Tensor:
    positions = torch.arange(n).expand(rows, -1)
    return uniform(torch.tensor(row_seeds(seed, rows)), level, purpose, positions)


def test_the_finaliser_gives_the_published_numbers_of_splitmix64() -> None:
    states = [(1234567 + i * GOLDEN) & MASK for i in range(1, 4)]
    assert [finalise(state) for state in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("seed", [(0, 0), (0, 1), (1, 0), (2**63 - 1, 2**63 - 1), (123456789012345, 17)])
def test_uniform_equals_the_arithmetic_on_python_integers(seed: tuple[int, int]) -> None:
    positions = torch.tensor([[0, 1, 2, 131071, 2**40]])
    for level in range(4):
        for purpose in Purpose:
            found = uniform(torch.tensor([seed]), level, purpose, positions)
            assert found.dtype is torch.float64
            assert found[0].tolist() == [expected(seed, level, purpose, int(p)) for p in positions[0]]


def test_a_number_does_not_depend_on_the_rest_of_the_call() -> None:
    seeds = torch.tensor(row_seeds(5, 40))
    positions = torch.arange(30).expand(40, -1)
    whole = uniform(seeds, 1, Purpose.DRAW, positions)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(seeds[order], 1, Purpose.DRAW, positions)[:, 7:9], whole[order, 7:9])
    assert torch.equal(uniform(seeds[3:4], 1, Purpose.DRAW, positions[3:4, 5:6]), whole[3:4, 5:6])


@pytest.mark.parametrize("along", ["rows", "positions", "seeds", "levels"])
def test_numbers_are_uniform_along_each_word(along: str) -> None:
    n = 100_000
    if along == "rows":
        found = numbers(3, n, 0, Purpose.COIN, 1)
    elif along == "positions":
        found = numbers(3, 1, 0, Purpose.COIN, n)
    elif along == "seeds":
        seeds = torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.int64)], 1)
        found = uniform(seeds, 0, Purpose.COIN, torch.zeros(n, 1, dtype=torch.int64))
    else:
        found = torch.stack([numbers(3, 50, level, Purpose.DRAW, 50) for level in range(40)])
    assert float(found.min()) >= 0
    assert float(found.max()) < 1
    assert fit((found * 256).long(), torch.full((256,), 1 / 256)).passes
    # the low bits as well
    assert fit((found * 2**53).long() % 64, torch.full((64,), 1 / 64)).passes


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, Purpose.COIN), (0, Purpose.DRAW)),
        ((0, Purpose.DRAW), (1, Purpose.DRAW)),
        ((0, Purpose.COIN), (1, Purpose.COIN)),
        ((0, Purpose.COIN), (1, Purpose.DRAW)),
        ((1, Purpose.COIN), (2, Purpose.DRAW)),
    ],
)
def test_streams_are_independent(first: tuple[int, Purpose], second: tuple[int, Purpose]) -> None:
    a, b = (numbers(9, 400, level, purpose, 400) for level, purpose in (first, second))
    assert fit((a * 16).long() * 16 + (b * 16).long(), torch.full((256,), 1 / 256)).passes


def test_neighbouring_rows_positions_and_seeds_are_independent() -> None:
    a = numbers(9, 400, 0, Purpose.DRAW, 400)
    for b in (a.roll(1, 0), a.roll(1, 1), numbers(10, 400, 0, Purpose.DRAW, 400)):
        assert fit((a * 16).long() * 16 + (b * 16).long(), torch.full((256,), 1 / 256)).passes


def test_row_and_position_cannot_be_exchanged() -> None:
    """A sum of the words, in place of absorbing them in turn, would give row 3, position 5 what 5, 3 gets."""
    a = numbers(9, 50, 0, Purpose.DRAW, 50)
    assert not (a == a.T)[~torch.eye(50, dtype=torch.bool)].any()


def test_an_integer_seed_names_the_row() -> None:
    assert row_seeds(7, 3) == [(7, 0), (7, 1), (7, 2)]
    assert row_seeds([7, (8, 4)], 2) == [(7, 0), (8, 4)]


def test_seeds_are_compared_in_one_form() -> None:
    assert parse_seed(7) == 7
    assert parse_seed([7, (8, 4)]) == parse_seed(((7, 0), (8, 4))) == ((7, 0), (8, 4))


def test_no_seed_draws_a_fresh_one() -> None:
    found = {row_seeds(None, 1)[0] for _ in range(20)}
    assert len(found) == 20
    assert all(row == 0 for _, row in found)


@pytest.mark.parametrize("seed", [-1, 2**63, [1, -2], [(1, 2**63), 4]])
def test_a_seed_out_of_range_is_refused(seed: int | list[int | tuple[int, int]]) -> None:
    with pytest.raises(UsageError, match=r"outside 0 \.\. 2\*\*63 - 1"):
        row_seeds(seed, 2)


def test_a_wrong_number_of_seeds_is_refused() -> None:
    with pytest.raises(UsageError, match="3 seeds were given for 2 rows"):
        row_seeds([1, 2, 3], 2)
