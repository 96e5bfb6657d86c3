// exp of sixteen lanes, our own so that it does not depend on a C library.
#pragma once

#include "simd.hpp"

namespace qspec {

// e^x to about 1 ulp: x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts), the Taylor polynomial of
// degree 7 in r, times 2^n in two steps so that values next to the largest float stay finite. Below -86.6 the
// result is 0, above 88.72 infinity. min and max hand on their second operand where one is NaN: NaN stays
// NaN.
inline f32 exp(f32 x) {
    const f32 lowest = set1(-86.6f), highest = set1(88.72f);
    const f32 clamped = max(lowest, min(highest, x));
    const i32 n = round_to_int(mul(clamped, set1(1.44269504f)));
    const f32 whole = to_float(n);
    f32 r = sub(clamped, mul(whole, set1(0.693359375f)));
    r = sub(r, mul(whole, set1(-2.12194440e-4f)));
    f32 p = set1(1.0f / 5040);
    p = fma(p, r, set1(1.0f / 720));
    p = fma(p, r, set1(1.0f / 120));
    p = fma(p, r, set1(1.0f / 24));
    p = fma(p, r, set1(1.0f / 6));
    p = fma(p, r, set1(0.5f));
    p = fma(p, r, set1(1.0f));
    p = fma(p, r, set1(1.0f));
    f32 value = mul(p, from_bits(shift_left<23>(add(n, set1(126)))));
    value = add(value, value);
    value = if_less(x, lowest, zero(), value);
    return if_less(highest, x, from_bits(set1(0x7f800000)), value);
}

}  // namespace qspec
