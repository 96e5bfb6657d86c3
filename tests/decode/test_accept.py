"""The acceptance rules by themselves: hand-made ragged cases, and every decision against `reference/`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qspec_decode.accept import greedy, standard
from qspec_decode.sampling import SamplingParams, draw, probabilities
from reference import accept as reference
from tests.decode.chi_square import fit

# the largest number below 1 that `uniform` returns
LAST = 1 - 2.0**-53


@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize("padding", [-1, 0, 10**9])
def test_greedy_accepts_up_to_the_first_difference_in_every_row(k: int, padding: int) -> None:
    """One row for every pair of a number of drafts and a number that agree; padding agrees with nothing."""
    cases = [(drafted, agree) for drafted in range(k + 1) for agree in range(drafted + 1)]
    target = torch.arange(10, 10 + k + 1).expand(len(cases), -1)
    drafts = torch.full((len(cases), k), padding)
    for row, (drafted, agree) in enumerate(cases):
        drafts[row, :drafted] = target[row, :drafted]
        if agree < drafted:
            drafts[row, agree] = 3
    accepted, following = greedy.accept(drafts, torch.tensor([d for d, _ in cases]), target)
    assert accepted.tolist() == [agree for _, agree in cases]
    rows = zip(drafts.tolist(), target.tolist(), cases, strict=True)
    assert [greedy.num_accepted(d[:n], t) for d, t, (n, _) in rows] == accepted.tolist()
    assert following.tolist() == [10 + agree for _, agree in cases]


def test_greedy_does_not_accept_a_padded_draft_that_happens_to_agree() -> None:
    accepted, following = greedy.accept(
        torch.tensor([[5, 6, 7]]), torch.tensor([1]), torch.tensor([[5, 6, 7, 8]])
    )
    assert (accepted.item(), following.item()) == (1, 6)


def test_greedy_does_not_accept_what_agrees_again_behind_a_difference() -> None:
    accepted, following = greedy.accept(
        torch.tensor([[5, 9, 7]]), torch.tensor([3]), torch.tensor([[5, 6, 7, 8]])
    )
    assert (accepted.item(), following.item()) == (1, 6)


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("padding", [-1, 10**9])
def test_standard_accepts_ragged_rows_up_to_the_first_refusal(k: int, drawn: bool, padding: int) -> None:
    """A coin of 0 accepts, one of 0.99 refuses; what follows is forced, by a residual or bonus of one id."""
    vocab = 12
    cases = [(drafted, agree) for drafted in range(k + 1) for agree in range(drafted + 1)]
    rows = len(cases)
    # the target halves its mass between the draft's id, always 0, and an id that names the position
    p = torch.zeros(rows, k + 1, vocab)
    p[:, :, 0] = 0.5
    p[:, torch.arange(k + 1), torch.arange(1, k + 2)] = 0.5
    q = torch.zeros(rows, k, vocab)
    q[:, :, 0] = 1.0
    drafts, coins = torch.full((rows, k), padding), torch.zeros(rows, k).double()
    for row, (drafted, agree) in enumerate(cases):
        drafts[row, :drafted] = 0
        coins[row, agree:] = 0.99
    num = torch.tensor([d for d, _ in cases])
    draws = torch.full((rows, k + 1), 0.75, dtype=torch.float64)
    accepted, following = standard.accept(drafts, num, q if drawn else None, p, coins, draws)
    assert accepted.tolist() == [agree for _, agree in cases]
    assert following.tolist() == [1 + agree for _, agree in cases]
    # with a low number the bonus may be id 0, the residual must not
    low = standard.accept(drafts, num, q if drawn else None, p, coins, draws * 0)[1]
    assert low.tolist() == [0 if agree == drafted else 1 + agree for drafted, agree in cases]


def grid(generator: torch.Generator, *shape: int) -> Tensor:
    """Distributions in steps of 1/64, zeros among them: all arithmetic on them is exact."""
    *batch, vocab = shape
    cuts = torch.randint(0, 65, (*batch, vocab - 1), generator=generator).sort(-1).values
    edges = torch.cat([torch.zeros(*batch, 1), cuts, torch.full((*batch, 1), 64)], -1)
    return edges.diff(dim=-1).float() / 64


def odd(generator: torch.Generator, *shape: int) -> Tensor:
    """Odd multiples of 1/256: never on the edge between two ids of a residual."""
    return (2 * torch.randint(0, 128, shape, generator=generator) + 1).double() / 256


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 6),
    k=st.integers(0, 5),
    vocab=st.integers(2, 9),
    drawn=st.booleans(),
)
def test_standard_decides_as_the_reference_does(
    seed: int, rows: int, k: int, vocab: int, drawn: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q = grid(generator, rows, k + 1, vocab), grid(generator, rows, k, vocab)
    ids = draw(q, odd(generator, rows, k))
    num = torch.randint(0, k + 1, (rows,), generator=generator)
    coins, draws = odd(generator, rows, k), odd(generator, rows, k + 1)
    # nothing was drafted there, and whatever stands there must not matter
    q[torch.arange(k) >= num[:, None]] = torch.nan
    accepted, following = standard.accept(ids, num, q if drawn else None, p, coins, draws)
    for row in range(rows):
        n = int(num[row])
        expected = reference.standard(
            ids[row, :n].tolist(),
            list(q[row, :n].double()) if drawn else None,
            list(p[row, : n + 1].double()),
            coins[row].tolist(),
            draws[row].tolist(),
        )
        assert (int(accepted[row]), int(following[row])) == expected


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 6), k=st.integers(0, 5))
def test_greedy_decides_as_the_reference_does(seed: int, rows: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drafts = torch.randint(0, 2, (rows, k), generator=generator)
    target = torch.randint(0, 2, (rows, k + 1), generator=generator)
    num = torch.randint(0, k + 1, (rows,), generator=generator)
    accepted, following = greedy.accept(drafts, num, target)
    for row in range(rows):
        n = int(num[row])
        expected = reference.greedy(drafts[row, :n].tolist(), target[row, : n + 1].tolist())
        assert (int(accepted[row]), int(following[row])) == expected


def markov(seed: int, vocab: int) -> reference.NextProbs:
    table = (
        (torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed)) * 1.5).double().softmax(-1)
    )
    return lambda context: table[context[-1]]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_reference_rule_emits_the_target_distribution_exactly(k: int) -> None:
    target, draft = markov(1, 3), markov(2, 3)
    found = reference.speculative_joint(target, draft, (0,), k, 4)
    assert torch.allclose(found, reference.joint(target, (0,), 4), rtol=1e-12, atol=1e-15)
    assert sum(reference.round_distribution(target, draft, (0,), k).values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_whole_emissions_of_a_round_have_the_exact_distribution(k: int) -> None:
    """Not only the tokens: also how many are accepted, which a rule could get wrong and still be lossless."""
    vocab, rows = 4, 200_000
    generator = torch.Generator().manual_seed(k)
    p, q = grid(generator, k + 1, vocab), grid(generator, k, vocab)
    exact = reference.round_distribution(
        lambda context: p[len(context)].double(), lambda context: q[len(context)].double(), (), k
    )
    numbers = torch.rand(3, rows, k + 1, generator=generator, dtype=torch.float64)
    ids = draw(q.expand(rows, -1, -1), numbers[0, :, :k])
    num = torch.full((rows,), k)
    accepted, following = standard.accept(
        ids, num, q.expand(rows, -1, -1), p.expand(rows, -1, -1), numbers[1, :, :k], numbers[2]
    )
    # an emission as a number: its tokens in base vocab+1, where 0 ends it
    tokens = torch.cat([ids, following[:, None]], 1).scatter(1, accepted[:, None], following[:, None]) + 1
    tokens[torch.arange(k + 1) > accepted[:, None]] = 0
    base = (vocab + 1) ** torch.arange(k, -1, -1)
    probs = torch.zeros((vocab + 1) ** (k + 1), dtype=torch.float64)
    for emission, probability in exact.items():
        padded = [token + 1 for token in emission] + [0] * (k + 1 - len(emission))
        probs[int((torch.tensor(padded) * base).sum())] = probability
    found = fit((tokens * base).sum(1), probs)
    print(f"\n  emissions, K={k}: {found}", end="")
    assert found.df > 4
    assert found.passes


def accept_one(
    p: list[list[float]], q: list[list[float]] | None, ids: list[int], coin: float, number: float
) -> tuple[int, int]:
    n, following = standard.accept(
        torch.tensor([ids]),
        torch.tensor([len(ids)]),
        None if q is None else torch.tensor([q]),
        torch.tensor([p]),
        torch.full((1, len(ids)), coin, dtype=torch.float64),
        torch.full((1, len(ids) + 1), number, dtype=torch.float64),
    )
    return int(n), int(following)


def test_equal_distributions_accept_every_coin() -> None:
    for seed in range(50):
        p = torch.randn(7, generator=torch.Generator().manual_seed(seed)).softmax(-1).tolist()
        for token in range(7):
            assert accept_one([p, p], [p], [token], LAST, 0.5)[0] == 1


def test_an_id_that_the_target_excludes_is_refused_by_every_coin() -> None:
    assert accept_one([[0.0, 1.0], [0.5, 0.5]], [[1.0, 0.0]], [0], 0.0, 0.0) == (0, 1)
    assert accept_one([[0.0, 1.0], [0.5, 0.5]], None, [0], 0.0, LAST) == (0, 1)


def test_logits_of_minus_infinity_are_never_emitted() -> None:
    """Padded vocabularies: whatever the numbers, the masked ids stay out, on either side."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 500, 4, 10, generator=generator)
    logits[..., [0, 4, 9]] = -torch.inf
    p, q = probabilities(logits, SamplingParams(temperature=0.7))
    ids = draw(q[:, :3], torch.rand(500, 3, generator=generator, dtype=torch.float64))
    for number in (0.0, 0.5, LAST):
        for coin in (0.0, LAST):
            accepted, following = standard.accept(
                ids,
                torch.full((500,), 3),
                q[:, :3],
                p,
                torch.full((500, 3), coin, dtype=torch.float64),
                torch.full((500, 4), number, dtype=torch.float64),
            )
            assert not torch.isin(following, torch.tensor([0, 4, 9])).any()
            assert ((following >= 0) & (following < 10)).all()
            assert accepted.max() <= 3


def test_no_residual_mass_falls_back_to_the_target() -> None:
    """q a rounding error above p: the refusal, possible in principle, must not divide by nothing."""
    p, q = [0.5, 0.5 - 1e-7], [0.5, 0.5]
    assert accept_one([p, p], [q], [1], LAST, 0.25) == (0, 0)
    assert accept_one([p, p], [q], [1], LAST, 0.75) == (0, 1)


@pytest.mark.parametrize("k", [0, 3])
def test_a_batch_without_drafts_draws_from_the_target(k: int) -> None:
    p = torch.tensor([[[0.25, 0.75]] + [[1.0, 0.0]] * k] * 2)
    accepted, following = standard.accept(
        torch.full((2, k), -1),
        torch.zeros(2, dtype=torch.int64),
        None,
        p,
        torch.zeros(2, k).double(),
        torch.tensor([[0.2] * (k + 1), [0.3] * (k + 1)]).double(),
    )
    assert accepted.tolist() == [0, 0]
    assert following.tolist() == [0, 1]


def test_every_rule_says_whether_it_is_lossless() -> None:
    assert greedy.LOSSLESS is True
    assert standard.LOSSLESS is True
