"""The normalised Hadamard transform of rows, for the plain op and the one that quantises as well.

A row of width d * p is a matrix x [d, p], and kron(H_d, H_p) x = H_d x H_p. The left product, with d = m * q
and q a power of two, goes to the matrix units: +-1 is exact in bfloat16, and a float32 number is the sum of
three bfloat16 parts. So products are exact, and only their float32 sums round. The right product is
butterflies between columns, which the matrix units' result has in registers and neighbouring lanes: nothing
is exchanged through shared memory. Infinities come out as NaN.

    width  m    d x p        lines of H_d x that a program gives
    4096   1    64 x 64      64
    8192   1    128 x 64     128
    14336  28   112 x 128    128, of which 112 are used
    18944  148  148 x 128    128, in two programs
"""

# constants and loops of device code are Triton's own
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false

from typing import NamedTuple

import triton
import triton.language as tl

from qspec_kernels.backends.triton._interpreter import BF16, rounded
from qspec_kernels.backends.triton._rows import gated, log2
from qspec_kernels.backends.triton._sizes import cdiv, next_power_of_2

# float32 numbers of one program: 64 KiB, what every GPU has room to transpose
_TILE = 16384


class Plan(NamedTuple):
    """How rows of one width are cut: constants of the kernels, in their order.

    Rows are taken ROWS at a time, side by side as ROWS * P columns; a program gives D_TILE of the D rows of
    H_d x, summing STEP of their terms at a time. H_d is kron(H_M, H_Q).
    """

    M: int
    Q: int
    P: int
    ROWS: int
    D_TILE: int
    STEP: int

    @property
    def tiles(self) -> int:
        """Programs that share a row."""
        return cdiv(self.M * self.Q, self.D_TILE)

    @property
    def warps(self) -> int:
        """16 rows of the result each."""
        return min(16, max(1, self.D_TILE // 16))


def plan(width: int, m: int) -> Plan:
    """The plan for rows of `width`, a multiple of m and a power of two: a function of these two alone."""
    power = width // m
    p = min(power, 64 if width <= 8192 else 128)
    if m == 1:
        # at least 16 rows: what a matrix instruction takes
        p = min(p, max(1, width // 16))
    padded = max(16, next_power_of_2(width // p))
    rows = 1 if p >= 16 else max(16, min(64, _TILE // padded)) // p
    columns = rows * p
    tile = min(padded, max(16, _TILE // columns))
    step = max(16, min(64, padded, 1024 // columns, 8192 // tile))
    return Plan(m, power // p, p, rows, tile, step)


def matrix_units(arch: int, cut: Plan) -> tuple[str, ...]:
    """The instruction that H_d x is computed with: four warps work together on Hopper and Blackwell."""
    if cut.D_TILE >= 64 and arch // 10 == 9:
        return ("HGMMA",)
    if cut.D_TILE >= 64 and cut.ROWS * cut.P >= 64 and arch // 10 == 10:
        return ("UTCHMMA",)
    return ("HMMA",)


@triton.jit
def _signs(base, i, j, M: tl.constexpr, Q: tl.constexpr, TRANSPOSE: tl.constexpr):
    """Entries (i, j) of kron(H_M, H_Q), or of its transpose; zero outside."""
    # Sylvester's entry is the parity of the bits that both indices have
    bits = (i % Q) & (j % Q)
    if Q > 256:
        bits ^= bits >> 8
    bits ^= bits >> 4
    bits ^= bits >> 2
    odd = ((bits ^ (bits >> 1)) & 1) != 0
    inside = (i < M * Q) & (j < M * Q)
    if M == 1:
        sign = tl.where(inside, 1, 0)
    elif TRANSPOSE:
        sign = tl.load(base + (j // Q) * M + i // Q, mask=inside, other=0).to(tl.int32)
    else:
        sign = tl.load(base + (i // Q) * M + j // Q, mask=inside, other=0).to(tl.int32)
    return tl.where(odd, -sign, sign)


@triton.jit
def _product(signs, x, total):
    """total + signs x, every product exact."""
    parts: tl.constexpr = 1 if x.dtype == tl.bfloat16 else 3
    for _ in tl.static_range(parts):
        part = x.to(BF16)
        total = tl.dot(signs.to(BF16), part, total, input_precision="ieee")
        x = x.to(tl.float32) - part.to(tl.float32)
    return total


@triton.jit
def _butterfly(y, STRIDE: tl.constexpr):
    """Columns c and c + STRIDE become their sum and difference."""
    pairs = tl.reshape(y, [y.shape[0], y.shape[1] // (2 * STRIDE), 2, STRIDE])
    # the other one's bits are the sum of both less one's own: one shuffle, and none within a thread
    bits = pairs.to(tl.int32, bitcast=True)
    other = (tl.sum(bits, 2, keep_dims=True) - bits).to(tl.float32, bitcast=True)
    first = tl.reshape(tl.arange(0, 2), [1, 1, 2, 1]) == 0
    return tl.reshape(other + tl.where(first, pairs, -pairs), y.shape)


@triton.jit
def rotated(
    x, base, diagonal, row, rows, column, line, SCALE: tl.constexpr, PERIOD: tl.constexpr,
    TRANSPOSE: tl.constexpr, M: tl.constexpr, Q: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr,
    D_TILE: tl.constexpr, STEP: tl.constexpr, OF: tl.constexpr = "",
):  # fmt: skip
    """Rows `line` [D_TILE] of the transforms of rows `row` [1, ROWS * P], float32 [D_TILE, ROWS * P].

    `column` says which of a row's P columns each is. The diagonal belongs to PERIOD rows, again and again;
    PERIOD 0: there is none. OF "silu_mul": the rows of x are twice as wide, and gated first.
    """
    D: tl.constexpr = M * Q
    total = tl.zeros([D_TILE, ROWS * P], tl.float32)
    for start in range(0, D, STEP):
        term = start + tl.arange(0, STEP)
        inside = (term[:, None] < D) & (row < rows)
        at = term[:, None] * P + column
        if OF == "silu_mul":
            gate = tl.load(x + row * (2 * D * P) + at, mask=inside, other=0.0)
            up = tl.load(x + row * (2 * D * P) + D * P + at, mask=inside, other=0.0)
            value = rounded(gated(gate, up), gate.dtype)
        else:
            value = tl.load(x + row * (D * P) + at, mask=inside, other=0.0)
        if PERIOD > 0 and not TRANSPOSE:
            factors = tl.load(diagonal + row % PERIOD * (D * P) + at, mask=inside, other=0.0)
            value = value.to(tl.float32) * factors
        signs = _signs(base, line[:, None], term[None, :], M, Q, TRANSPOSE)
        total = _product(signs, value, total)
    for level in tl.static_range(log2(P)):
        total = _butterfly(total, 2**level)
    total *= SCALE
    if PERIOD > 0 and TRANSPOSE:
        inside = (line[:, None] < D) & (row < rows)
        at = row % PERIOD * (D * P) + line[:, None] * P + column
        total *= tl.load(diagonal + at, mask=inside, other=0.0)
    return total
