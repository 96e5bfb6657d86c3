// rope: rotary embedding, halves rotated against each other (transformers' Llama convention).
//
//     a = float32(position[t] * inv_freq[i]), c = cos(a) * scaling, s = sin(a) * scaling
//     out[t, h, i]       = x[t, h, i] * c - x[t, h, i + D/2] * s
//     out[t, h, i + D/2] = x[t, h, i + D/2] * c + x[t, h, i] * s
//
// each product and sum rounded to float32. A task: some tokens; the angles of a token are computed once for
// all heads.

#include "pool.hpp"
#include "simd.hpp"

namespace {

using namespace qspec;

constexpr int kHalf = 512;  // largest D/2

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

template <class T>
void rotate(T* out, const T* x, const float* cosines, const float* sines, int64_t half) {
    for_lanes(half, [&](int64_t i, int n) {
        const f32 a = load_lanes(x + i, n), b = load_lanes(x + half + i, n);
        const f32 c = load_lanes(cosines + i, n), s = load_lanes(sines + i, n);
        store_lanes(out + i, sub(mul(a, c), mul(b, s)), n);
        store_lanes(out + half + i, add(mul(b, c), mul(a, s)), n);
    });
}

}  // namespace

QSPEC_EXPORT int qspec_rope(void* out, const void* x, int64_t bf16, const int32_t* positions,
                            const float* inv_freq, float scaling, int64_t tokens, int64_t heads, int64_t dim,
                            int64_t x_stride, int64_t threads) {
    const int64_t half = dim / 2;
    Scratch<float> long_angles(half > kHalf ? 2 * half * tokens : 0);
    if (!long_angles.ok()) return kOutOfMemory;
    parallel_ranges(tokens, 16384 / (heads * dim + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        float on_stack[2 * kHalf];
        for (int64_t t = begin; t < end; ++t) {
            float* cosines = half > kHalf ? long_angles.get() + 2 * half * t : on_stack;
            float* sines = cosines + half;
            const float position = static_cast<float>(positions[t]);
            for (int64_t i = 0; i < half; ++i) {
                double s, c;
                const float angle = position * inv_freq[i];
                sine_cosine(angle, s, c);
                cosines[i] = static_cast<float>(c) * scaling;
                sines[i] = static_cast<float>(s) * scaling;
            }
            for (int64_t h = 0; h < heads; ++h) {
                const int64_t from = t * x_stride + h * dim, to = (t * heads + h) * dim;
                if (bf16) {
                    rotate(static_cast<uint16_t*>(out) + to, static_cast<const uint16_t*>(x) + from, cosines,
                           sines, half);
                } else {
                    rotate(static_cast<float*>(out) + to, static_cast<const float*>(x) + from, cosines, sines,
                           half);
                }
            }
        }
    });
    return kDone;
}
