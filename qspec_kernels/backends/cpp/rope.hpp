// Rotary embedding of one head, halves rotated against each other (transformers' Llama convention):
//
//     a = float32(position * inv_freq[i]), c = cos(a) * scaling, s = sin(a) * scaling
//     out[i]       = x[i] * c - x[i + D/2] * s
//     out[i + D/2] = x[i + D/2] * c + x[i] * s
//
// each product and sum rounded to float32.
#pragma once

#include "simd.hpp"

namespace qspec {

// sin and cos of a float, correct to float32: the angle is reduced by multiples of pi/2 in double (exact
// enough to 2^30), the polynomials are Taylor's on [-pi/4, pi/4]. Written without branches, so that the
// compiler takes several angles at a time.
inline void sine_cosine(double a, double& sine, double& cosine) {
    constexpr double magic =
        6755399441055744.0;  // adding 1.5 * 2^52 rounds to an integer, kept in the low bits
    const double shifted = a * 0.63661977236758134308 + magic;
    int64_t quadrant;
    memcpy(&quadrant, &shifted, 8);
    const double n = shifted - magic;
    const double r = (a - n * 1.57079632679489655800) - n * 6.12323399573676603587e-17;
    const double z = r * r;
    const double s =
        r + r * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 - z / 39916800))));
    const double c = 1 + z * (-1.0 / 2 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 - z / 3628800))));
    const bool swap = quadrant & 1;
    const double s_sign = quadrant & 2 ? -1.0 : 1.0;
    const double c_sign = (quadrant + 1) & 2 ? -1.0 : 1.0;
    sine = (swap ? c : s) * s_sign;
    cosine = (swap ? s : c) * c_sign;
}

inline void rope_angles(float* cosines, float* sines, int32_t position, const float* inv_freq, float scaling,
                        int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        double s, c;
        const float angle = static_cast<float>(position) * inv_freq[i];
        sine_cosine(angle, s, c);
        cosines[i] = static_cast<float>(c) * scaling;
        sines[i] = static_cast<float>(s) * scaling;
    }
}

template <class T>
inline void rope_head(T* out, const T* x, const float* cosines, const float* sines, int64_t half) {
    for_lanes(half, [&](int64_t i, int n) {
        const f32 a = load_lanes(x + i, n), b = load_lanes(x + half + i, n);
        const f32 c = load_lanes(cosines + i, n), s = load_lanes(sines + i, n);
        store_lanes(out + i, sub(mul(a, c), mul(b, s)), n);
        store_lanes(out + half + i, add(mul(b, c), mul(a, s)), n);
    });
}

}  // namespace qspec
