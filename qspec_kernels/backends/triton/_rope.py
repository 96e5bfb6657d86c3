"""Sine and cosine of the angles of rotary embedding, and the turn."""

# constants and loops of device code are Triton's own
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def sin_cos(angle):
    """Both of a float32 angle of any size, to float32's precision.

    The angle's place in its quarter turn is found in float64, where positions of a million leave 30 bits of
    it; there are as many angles as half a head has features, which is few enough for any GPU. Then
    Taylor's polynomials on +-pi / 4, whose first term left out is below 2^-27.
    """
    wide = angle.to(tl.float64)
    # behind 1.5 * 2^52 there is no room for fractions: the low bits are the number of the quarter
    shifted = wide * 0.6366197723675814 + 6755399441055744.0
    quarter = shifted.to(tl.int64, bitcast=True).to(tl.int32) & 3
    x = (wide - (shifted - 6755399441055744.0) * 1.5707963267948966).to(tl.float32)
    square = x * x
    sin = 1.0 / 362880.0 * square - 1.0 / 5040.0
    sin = (sin * square + 1.0 / 120.0) * square - 1.0 / 6.0
    sin = sin * square * x + x
    cos = -1.0 / 3628800.0 * square + 1.0 / 40320.0
    cos = ((cos * square - 1.0 / 720.0) * square + 1.0 / 24.0) * square - 0.5
    cos = cos * square + 1.0
    swapped = (quarter & 1) != 0
    of_sin, of_cos = tl.where(swapped, cos, sin), tl.where(swapped, sin, cos)
    of_sin = tl.where((quarter & 2) != 0, -of_sin, of_sin)
    return of_sin, tl.where(((quarter + 1) & 2) != 0, -of_cos, of_cos)


@triton.jit
def turned(first, second, position, inv_freq, pair, scaling, HALF: tl.constexpr):
    """Both halves of heads [..., pairs] turned by position * inv_freq, not yet rounded to their type."""
    sin, cos = sin_cos(position.to(tl.float32) * tl.load(inv_freq + pair, mask=pair < HALF, other=0.0))
    sin, cos = sin * scaling, cos * scaling
    first, second = first.to(tl.float32), second.to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin
