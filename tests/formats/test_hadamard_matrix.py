"""Hadamard matrices of every width that models use, checked in exact integers."""

import importlib

import pytest
import torch

from qspec_kernels.errors import UsageError
from qspec_kernels.hadamard_matrix import factor, hadamard_matrix, largest_block

# by its path: the package exports the function of the same name
module = importlib.import_module("qspec_kernels.hadamard_matrix")

WIDTHS = {
    96: 12,
    896: 28,
    1024: 1,
    2560: 20,
    3072: 12,
    4608: 36,
    4864: 76,
    5120: 20,
    5632: 44,
    6144: 12,
    8960: 140,
    9728: 76,
    11008: 344,
    12288: 12,
    13824: 108,
    14336: 28,
    17408: 68,
    17920: 140,
    18944: 148,
    25600: 100,
    27648: 108,
    28672: 28,
    29568: 924,
}
BASES = [m for m in range(1, 601) if module._is_base(m)]


def is_hadamard(matrix: torch.Tensor) -> bool:
    n = len(matrix)
    # float32 sums of n <= 2^24 signs are exact
    product = matrix.float() @ matrix.float().T
    return bool((matrix.abs() == 1).all()) and torch.equal(product, n * torch.eye(n))


@pytest.mark.parametrize(("width", "m"), WIDTHS.items(), ids=str)
def test_widths_of_models_factor(width: int, m: int) -> None:
    assert factor(width) == (m, width // m)
    assert largest_block(width) == width
    assert is_hadamard(hadamard_matrix(m))


@pytest.mark.parametrize("m", BASES, ids=str)
def test_every_base_order_is_hadamard(m: int) -> None:
    matrix = hadamard_matrix(m)
    assert matrix.shape == (m, m)
    assert matrix.dtype == torch.int8
    assert is_hadamard(matrix)


def test_bases_hold_both_constructions_over_primes_and_prime_powers() -> None:
    first = {12: 11, 28: 3**3, 44: 43, 244: 3**5, 344: 7**3}
    second = {36: 17, 76: 37, 100: 7**2, 148: 73, 924: 461}
    assert {m: module._paley_field(m) for m in first | second} == first | second
    assert all(m == q + 1 for m, q in first.items())
    assert all(m == 2 * (q + 1) for m, q in second.items())
    assert 92 not in BASES
    assert 116 not in BASES


def test_a_product_of_two_bases_is_hadamard() -> None:
    products = [m for m in range(4, 2049, 4) if not module._paley_field(m) and module._split(m)]
    assert products
    assert is_hadamard(hadamard_matrix(products[0]))


@pytest.mark.parametrize("n", [2, 4, 64, 96, 304, 688])
def test_composite_orders_are_kronecker_products(n: int) -> None:
    m, power = factor(n)
    matrix = hadamard_matrix(n)
    assert is_hadamard(matrix)
    assert torch.equal(matrix, torch.kron(hadamard_matrix(m), hadamard_matrix(power)))


def test_the_first_construction_is_not_symmetric() -> None:
    matrix = hadamard_matrix(12)
    assert not torch.equal(matrix, matrix.T)


def test_field_of_343_has_171_squares_and_is_skew() -> None:
    characters = module._characters(343)
    assert (characters == 1).sum(1).tolist() == [171] * 343
    assert torch.equal(characters, -characters.T)


def test_a_cached_matrix_is_shared() -> None:
    assert hadamard_matrix(344) is hadamard_matrix(344)


@pytest.mark.parametrize(
    ("width", "block"), [(13696, 128), (92, 4), (13, 1), (46, 2), (2 * 13 * 12, 312), (1, 1)]
)
def test_largest_block_divides_and_has_a_matrix(width: int, block: int) -> None:
    assert largest_block(width) == block
    assert width % block == 0
    assert is_hadamard(hadamard_matrix(block))


@pytest.mark.parametrize("width", [13696, 92, 3, 0, -4])
def test_unknown_widths_are_named(width: int) -> None:
    with pytest.raises(UsageError, match=str(width)):
        factor(width)
