// Sixteen lanes of float or int32, the same few functions on every instruction set.
//
// A tile of a packed weight is sixteen output rows wide, so sixteen lanes are the unit everywhere: one
// register with AVX-512, two with AVX2, four with SSE2. The kernels are written once against these functions;
// what differs between instruction sets is in the three files included below and nowhere else.
//
// fma() is fused where the hardware fuses and two roundings where it does not. Sums that must agree between
// instruction sets use add(mul()) or exact operands instead.
#pragma once

#include <stdint.h>
#include <string.h>

namespace qspec {

inline constexpr int kLanes = 16;

inline float bf16_to_float(uint16_t h) {
    uint32_t bits = static_cast<uint32_t>(h) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// Round to nearest even; a NaN stays a (quiet) NaN.
inline uint16_t float_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

}  // namespace qspec

#if defined(__AVX512F__)
#include "simd_avx512.hpp"
#elif defined(__AVX2__)
#include "simd_avx2.hpp"
#else
#include "simd_portable.hpp"
#endif

namespace qspec {

// 2^e, for -128 <= e <= 127: the exponent moves into place, but for the two results that are subnormal.
inline f32 power_of_two(i32 e) {
    const i32 plain = shift_left<23>(add(e, set1(127)));
    const i32 half = if_equal(e, set1(-127), set1(0x00400000), plain);
    return from_bits(if_equal(e, set1(-128), set1(0x00200000), half));
}

// The first n lanes from memory, zeros behind them; 0 <= n <= 16.
inline f32 load_first(const float* p, int n) {
    float lanes[kLanes] = {};
    memcpy(lanes, p, sizeof(float) * n);
    return load(lanes);
}

inline f32 load_first(const uint16_t* bf16, int n) {
    uint16_t lanes[kLanes] = {};
    memcpy(lanes, bf16, sizeof(uint16_t) * n);
    return load(lanes);
}

inline void store_first(float* p, f32 v, int n) {
    float lanes[kLanes];
    store(lanes, v);
    memcpy(p, lanes, sizeof(float) * n);
}

inline void store_first(uint16_t* bf16, f32 v, int n) {
    uint16_t lanes[kLanes];
    store(lanes, v);
    memcpy(bf16, lanes, sizeof(uint16_t) * n);
}

// Calls body(index, lanes) over n values, sixteen at a time; the last call may have fewer lanes.
template <class Body>
inline void for_lanes(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
    if (i < n) body(i, static_cast<int>(n - i));
}

// body(float{}) or, for BF16, body(uint16_t{}): a run-time dtype becomes a type.
template <class Body>
inline void with_element(bool bf16, const Body& body) {
    if (bf16) {
        body(uint16_t{});
    } else {
        body(float{});
    }
}

template <class T>
inline f32 load_lanes(const T* p, int n) {
    return n == kLanes ? load(p) : load_first(p, n);
}

template <class T>
inline void store_lanes(T* p, f32 v, int n) {
    if (n == kLanes) {
        store(p, v);
    } else {
        store_first(p, v, n);
    }
}

}  // namespace qspec
