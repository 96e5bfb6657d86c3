"""Hadamard matrices of the orders that model widths need: H with entries +-1 and H H^T = n I.

Widths factor into m * 2^k. Powers of two are Sylvester's. For the rest there are Paley's two
constructions over finite fields (R. E. A. C. Paley, "On orthogonal matrices", 1933), with q a power
of an odd prime: I has order q + 1 for q = 3 mod 4, II has order 2 (q + 1) for q = 1 mod 4. Kronecker
products of these are Hadamard again. Paley I is not symmetric, so H and its transpose must be told apart.
"""

from functools import lru_cache
from itertools import product

import torch
from jaxtyping import Int8
from torch import Tensor

from qspec_kernels.errors import UsageError

# a base matrix is applied densely: beyond this order a block transform is cheaper and mixes enough
MAX_ORDER = 2048


def hadamard_matrix(n: int) -> Int8[Tensor, "n n"]:
    """The Hadamard matrix of order n: kron(H_m, H_(2^k)) with (m, 2^k) = `factor(n)`.

    Orders up to `MAX_ORDER` are cached and shared: do not write into them.

    Raises
    ------
    UsageError
        If n is an order that no construction here reaches.

    Examples
    --------
    >>> hadamard_matrix(4).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    if n <= MAX_ORDER:
        return _cached(n)
    return _build(n)


@lru_cache
def factor(width: int) -> tuple[int, int]:
    """(m, 2^k) with m * 2^k = width and m the smallest order that has a base matrix; (1, n) for n = 2^k.

    Raises
    ------
    UsageError
        If there is no such m up to `MAX_ORDER`.

    Examples
    --------
    >>> factor(11008), factor(18944), factor(4096)
    ((344, 32), (148, 128), (1, 4096))
    """
    if width >= 1:
        m, power = _odd_part(width)
        while m <= MAX_ORDER:
            if _is_base(m):
                return m, power
            if power == 1:
                break
            m, power = 2 * m, power // 2
    hint = f"Use block={largest_block(width)}, a divisor that has one." if width >= 1 else ""
    raise UsageError(f"no Hadamard matrix is known here for width {width}", hint)


@lru_cache
def largest_block(width: int) -> int:
    """The largest divisor of `width` that has a Hadamard matrix: `width` itself for most models.

    >>> largest_block(11008), largest_block(13696)
    (11008, 128)
    """
    for parts in range(1, width + 1):
        if width % parts == 0 and _has_factor(width // parts):
            return width // parts
    raise UsageError(f"a width is at least 1, got {width}")


def _has_factor(width: int) -> bool:
    odd, power = _odd_part(width)
    candidates = (odd * 2**k for k in range(power.bit_length()))
    return any(m <= MAX_ORDER and _is_base(m) for m in candidates)


def _odd_part(n: int) -> tuple[int, int]:
    power = n & -n
    return n // power, power


@lru_cache(maxsize=16)
def _cached(n: int) -> Tensor:
    return _build(n)


def _build(n: int) -> Tensor:
    m, power = factor(n)
    matrix = _base(m)
    for _ in range(power.bit_length() - 1):
        matrix = torch.kron(matrix, torch.tensor([[1, 1], [1, -1]], dtype=torch.int8))
    return matrix


@lru_cache
def _is_base(m: int) -> bool:
    """Whether order m has a matrix other than as twice a smaller one."""
    return m == 1 or _paley_field(m) is not None or _split(m) is not None


def _paley_field(m: int) -> int | None:
    """The q whose field gives Paley's matrix of order m, the first construction preferred."""
    if m % 4 == 0 and _prime_power(m - 1):
        return m - 1
    if m % 4 == 0 and (m // 2 - 1) % 4 == 1 and _prime_power(m // 2 - 1):
        return m // 2 - 1
    return None


def _split(m: int) -> tuple[int, int] | None:
    """Two base orders with product m."""
    for left in range(12, int(m**0.5) + 1, 4):
        if m % left == 0 and _is_base(left) and _is_base(m // left):
            return left, m // left
    return None


def _base(m: int) -> Tensor:
    if m == 1:
        return torch.ones(1, 1, dtype=torch.int8)
    q = _paley_field(m)
    if q is not None:
        return _paley(q)
    left, right = _split(m) or (1, m)
    return torch.kron(_base(left), _base(right))


def _paley(q: int) -> Tensor:
    """Paley I (order q + 1) or II (order 2 q + 2), by the residue of q modulo 4."""
    first = q % 4 == 3
    # the conference matrix: the quadratic characters of all differences, bordered by ones
    bordered = torch.ones(q + 1, q + 1, dtype=torch.int8)
    bordered[0, 0] = 0
    bordered[1:, 0] = -1 if first else 1
    bordered[1:, 1:] = _characters(q)
    identity = torch.eye(q + 1, dtype=torch.int8)
    if first:
        return bordered + identity
    double = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    diagonal = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(bordered, double) + torch.kron(identity, diagonal)


def _characters(q: int) -> Tensor:
    """[q, q]: 1 where the difference of two elements of GF(q) is a square, -1 where not, 0 if equal."""
    p, degree = _prime_power(q) or (q, 1)
    elements = list(product(range(p), repeat=degree))
    modulus = _irreducible(p, degree)
    squares = {_remainder(_multiply(x, x, p), modulus, p) for x in elements}
    character = torch.tensor([1 if x in squares else -1 for x in elements], dtype=torch.int8)
    character[0] = 0
    digits = torch.tensor(elements)
    places = torch.tensor([p**i for i in reversed(range(degree))])
    differences = ((digits[:, None] - digits[None]) % p * places).sum(2)
    return character[differences]


def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, e) with q = p^e and p prime, or None."""
    if q < 2:
        return None
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    degree = 0
    while q % p == 0:
        q, degree = q // p, degree + 1
    return (p, degree) if q == 1 else None


# polynomials over the integers modulo p are tuples of coefficients, the highest power first


def _multiply(a: tuple[int, ...], b: tuple[int, ...], p: int) -> tuple[int, ...]:
    result = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            result[i + j] = (result[i + j] + x * y) % p
    return tuple(result)


def _remainder(a: tuple[int, ...], monic: tuple[int, ...], p: int) -> tuple[int, ...]:
    rest = list(a)
    for i in range(len(a) - len(monic) + 1):
        lead = rest[i]
        for j, coefficient in enumerate(monic):
            rest[i + j] = (rest[i + j] - lead * coefficient) % p
    return tuple(rest[len(rest) - len(monic) + 1 :])


def _irreducible(p: int, degree: int) -> tuple[int, ...]:
    """The first monic polynomial of that degree without a divisor: the modulus of GF(p^degree)."""
    for tail in product(range(p), repeat=degree):
        candidate = (1, *tail)
        divisors = ((1, *rest) for d in range(1, degree // 2 + 1) for rest in product(range(p), repeat=d))
        if all(any(_remainder(candidate, divisor, p)) for divisor in divisors):
            return candidate
    raise AssertionError("there is an irreducible polynomial of every degree")
