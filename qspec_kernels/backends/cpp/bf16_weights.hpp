// BF16 weights for dense.hpp.
//
// With AVX512-BF16 one VDPBF16PS takes 32 products; elsewhere the two halves of each 32-bit word are two
// float32 multiplications (even k, then odd k), with x laid out to match.
#pragma once

#include "dense.hpp"

namespace qspec {

struct Bf16Weights {
    using Stored = uint16_t;
    static constexpr int kStep = 32;
    static constexpr int64_t kPrefetch = 512;

#if defined(QSPEC_HAS_BF16_DOT)
    using Element = uint16_t;
    using Vector = i32;
    static Vector load_weights(const uint16_t* p) { return load_bits(p); }
    static Vector load_x(const uint16_t* p) { return load_bits(p); }
    static f32 multiply_add(f32 sum, Vector w, Vector x) { return dot_bf16(sum, w, x); }

    static void arrange(const float* x, uint16_t* out, int64_t k) {
        for_lanes(k, [&](int64_t i, int n) { store_lanes(out + i, load_lanes(x + i, n), n); });
    }
    static void arrange(const uint16_t* x, uint16_t* out, int64_t k) { memcpy(out, x, 2 * k); }
#else
    using Element = float;
    struct Vector {
        f32 even, odd;
    };
    static Vector load_weights(const uint16_t* p) {
        i32 words = load_bits(p);
        return {from_bits(shift_left<16>(words)), from_bits(bit_and(words, set1(int32_t(0xffff0000))))};
    }
    static Vector load_x(const float* p) { return {load(p), load(p + 16)}; }
    static f32 multiply_add(f32 sum, Vector w, Vector x) {
        return fma(w.odd, x.odd, fma(w.even, x.even, sum));
    }

    static float rounded(float v) { return bf16_to_float(float_to_bf16(v)); }
    static float rounded(uint16_t v) { return bf16_to_float(v); }
    template <class T>
    static void arrange(const T* x, float* out, int64_t k) {
        for (int64_t i = 0; i < k; ++i) out[i / 32 * 32 + i % 2 * 16 + i % 32 / 2] = rounded(x[i]);
    }
#endif
};

// Rows of x [m, k] as the weights want them: [m, padded], zeros behind k.
inline void arrange_rows(const void* x, bool bf16, Bf16Weights::Element* out, int64_t m, int64_t k,
                         int64_t padded, int64_t threads) {
    parallel_ranges(m, 65536 / (padded + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        with_element(bf16, [&](auto element) {
            using T = decltype(element);
            for (int64_t i = begin; i < end; ++i) {
                auto* row = out + i * padded;
                if (padded > 0) memset(row + padded - 32, 0, sizeof(*row) * 32);
                Bf16Weights::arrange(static_cast<const T*>(x) + i * k, row, k);
            }
        });
    });
}

}  // namespace qspec
