// Normalised Hadamard transform of one row of width m * 2^p:
//
//     y = kron(H_m, H_{2^p}) x / sqrt(m * 2^p)
//
// H_{2^p} (Sylvester) by butterflies of stride 1, 2, 4, ...; H_m by sums of whole blocks with the signs of a
// given
// +-1 matrix, j = 0 upwards. Only additions of exact operands and one multiplication at the end, so all
// instruction sets agree bit for bit.
#pragma once

#include <math.h>

#include "simd.hpp"

namespace qspec {

// In place, x of width `size` = 2^p; `count` such blocks one after the other.
inline void sylvester(float* x, int64_t size, int64_t count) {
    const int64_t width = size * count;
    int64_t stride = 1;
    if (size >= kLanes) {
        for (int64_t i = 0; i < width; i += kLanes)
            store(x + i, butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load(x + i))))));
        stride = kLanes;
    }
    for (; stride < size; stride *= 2) {
        for (int64_t begin = 0; begin < width; begin += 2 * stride) {
            float* a = x + begin;
            float* b = a + stride;
            if (stride < kLanes) {
                for (int64_t i = 0; i < stride; ++i) {
                    const float u = a[i], v = b[i];
                    a[i] = u + v;
                    b[i] = u - v;
                }
            } else {
                for (int64_t i = 0; i < stride; i += kLanes) {
                    const f32 u = load(a + i), v = load(b + i);
                    store(a + i, add(u, v));
                    store(b + i, sub(u, v));
                }
            }
        }
    }
}

// out[i] = scale * sum over j of sign[i, j] * x[j], every entry a block of `size` floats; kRows outputs at a
// time.
template <int kRows>
inline void mix_rows(float* out, const float* x, const float* signs, int64_t m, int64_t size, float scale,
                     int64_t at, int lanes) {
    f32 sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = zero();
    for (int64_t j = 0; j < m; ++j) {
        const f32 v = load_lanes(x + j * size + at, lanes);
        for (int r = 0; r < kRows; ++r) sum[r] = fma(set1(signs[r * m + j]), v, sum[r]);
    }
    for (int r = 0; r < kRows; ++r) store_lanes(out + r * size + at, mul(sum[r], set1(scale)), lanes);
}

inline void mix_blocks(float* out, const float* x, const float* signs, int64_t m, int64_t size, float scale) {
    for_lanes(size, [&](int64_t at, int lanes) {
        int64_t i = 0;
        for (; i + 4 <= m; i += 4) mix_rows<4>(out + i * size, x, signs + i * m, m, size, scale, at, lanes);
        for (; i < m; ++i) mix_rows<1>(out + i * size, x, signs + i * m, m, size, scale, at, lanes);
    });
}

// `work` has room for two rows; the result is in `out`, which may be any float row.
inline void hadamard_row(float* out, float* work, const float* signs, int64_t m, int64_t width) {
    const float scale = static_cast<float>(1.0 / sqrt(static_cast<double>(width)));
    sylvester(work, width / m, m);
    if (m > 1) {
        mix_blocks(out, work, signs, m, width / m, scale);
    } else {
        for_lanes(width, [&](int64_t i, int n) {
            store_lanes(out + i, mul(load_lanes(work + i, n), set1(scale)), n);
        });
    }
}

inline void widen(float* out, const uint16_t* x, int64_t n) {
    for_lanes(n, [&](int64_t i, int lanes) { store_lanes(out + i, load_lanes(x + i, lanes), lanes); });
}
inline void widen(float* out, const float* x, int64_t n) { memcpy(out, x, sizeof(float) * n); }

// row[i] *= factors[i].
inline void scale_row(float* row, const float* factors, int64_t n) {
    for_lanes(n, [&](int64_t i, int lanes) {
        store_lanes(row + i, mul(load_lanes(row + i, lanes), load_lanes(factors + i, lanes)), lanes);
    });
}

// Through BF16, as storing the row in it and loading it again would do.
inline void round_row(float* row, int64_t n) {
    for (int64_t i = 0; i < n; ++i) row[i] = bf16_to_float(float_to_bf16(row[i]));
}

// The +-1 matrix as floats, transposed where the inverse is wanted.
inline void spread_signs(float* out, const int8_t* base, int64_t m, bool transpose) {
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < m; ++j) out[i * m + j] = base[transpose ? j * m + i : i * m + j];
}

}  // namespace qspec
