// One row of silu_mul: out[f] = g / (1 + exp(-g)) * u with g = x[f], u = x[width + f], float32 inside.
#pragma once

#include "math.hpp"

namespace qspec {

template <class T>
inline void silu_mul_row(T* out, const T* x, int64_t width) {
    const f32 one = set1(1.0f);
    for_lanes(width, [&](int64_t i, int n) {
        const f32 g = load_lanes(x + i, n);
        const f32 silu = div(g, add(one, exp(sub(zero(), g))));
        store_lanes(out + i, mul(silu, load_lanes(x + width + i, n)), n);
    });
}

}  // namespace qspec
