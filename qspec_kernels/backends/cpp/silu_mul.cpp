// silu_mul: out[m, f] = g / (1 + exp(-g)) * u with g = x[m, f], u = x[m, F + f], float32 inside.
//
// A task: some rows.

#include "math.hpp"
#include "pool.hpp"

namespace {

using namespace qspec;

template <class T>
void gate(T* out, const T* x, int64_t width) {
    const f32 one = set1(1.0f);
    for_lanes(width, [&](int64_t i, int n) {
        const f32 g = load_lanes(x + i, n);
        const f32 silu = div(g, add(one, exp(sub(zero(), g))));
        store_lanes(out + i, mul(silu, load_lanes(x + width + i, n)), n);
    });
}

}  // namespace

QSPEC_EXPORT int qspec_silu_mul(void* out, const void* x, int64_t bf16, int64_t m, int64_t width,
                                int64_t threads) {
    parallel_ranges(m, 16384 / (width + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; ++i) {
            if (bf16) {
                gate(static_cast<uint16_t*>(out) + i * width, static_cast<const uint16_t*>(x) + 2 * i * width,
                     width);
            } else {
                gate(static_cast<float*>(out) + i * width, static_cast<const float*>(x) + 2 * i * width,
                     width);
            }
        }
    });
    return kDone;
}
