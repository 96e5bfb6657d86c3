// Activation codes of one row: scale = absmax * clip / qmax, code = clamp(rint(x / scale), -qmax, qmax), by
// true division and ties to even. The same bits on every instruction set and in torch.
#pragma once

#include "simd.hpp"

namespace qspec {

// The largest magnitude as bits: for non-negative floats integers order as floats do, and a NaN is above
// infinity.
template <class T>
inline float absolute_maximum(const T* x, int64_t count) {
    const i32 magnitude = set1(0x7fffffff);
    i32 best = set1(0);
    for_lanes(count,
              [&](int64_t i, int n) { best = max(best, bit_and(bits(load_lanes(x + i, n)), magnitude)); });
    const int32_t largest = reduce_max(best);
    float value;
    memcpy(&value, &largest, 4);
    return value;
}

// A zero group has scale 0 and codes 0; a group with a NaN has scale NaN and codes 0.
template <class T>
inline float quantize_group(const T* x, int8_t* codes, int64_t count, float qmax, float clip) {
    const float largest = absolute_maximum(x, count);
    const float scale = largest * clip / qmax;
    if (!(scale > 0)) {
        memset(codes, 0, count);
        return scale == 0 ? 0.0f : __builtin_nanf("");
    }
    const f32 divisor = set1(scale), high = set1(qmax), low = set1(-qmax);
    for_lanes(count, [&](int64_t i, int n) {
        const f32 v = zero_if_nan(div(load_lanes(x + i, n), divisor));
        const i32 code = round_to_int(max(min(v, high), low));
        if (n == kLanes) {
            store_codes(codes + i, code);
        } else {
            int8_t lanes[kLanes];
            store_codes(lanes, code);
            memcpy(codes + i, lanes, n);
        }
    });
    return scale;
}

template <class T>
inline void quantize_row(const T* x, int8_t* codes, float* scales, int64_t k, int64_t group_size, float qmax,
                         float clip) {
    for (int64_t begin = 0, g = 0; begin < k; begin += group_size, ++g) {
        const int64_t count = k - begin < group_size ? k - begin : group_size;
        scales[g] = quantize_group(x + begin, codes + begin, count, qmax, clip);
    }
}

}  // namespace qspec
