// One row of rmsnorm:
//
//     out[w] = (x[w] * (1 / sqrt(mean(x^2) + eps))) * weight[w]
//
// float32 inside. The sum of squares goes through four accumulators of sixteen lanes, added pairwise.
#pragma once

#include <math.h>

#include "simd.hpp"

namespace qspec {

template <class T>
inline void rmsnorm_row(T* out, const T* x, const float* weight, int64_t width, float eps) {
    f32 squares[4] = {zero(), zero(), zero(), zero()};
    for_lanes(width, [&](int64_t i, int n) {
        const f32 v = load_lanes(x + i, n);
        f32& sum = squares[i / kLanes % 4];
        sum = fma(v, v, sum);
    });
    const float total = reduce_add(add(add(squares[0], squares[1]), add(squares[2], squares[3])));
    const f32 factor = set1(1.0f / sqrtf(total / static_cast<float>(width) + eps));
    for_lanes(width, [&](int64_t i, int n) {
        store_lanes(out + i, mul(mul(load_lanes(x + i, n), factor), load_lanes(weight + i, n)), n);
    });
}

}  // namespace qspec
