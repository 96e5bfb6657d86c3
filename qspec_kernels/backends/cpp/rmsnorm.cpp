// rmsnorm: out[m, w] = (x[m, w] * (1 / sqrt(mean(x[m]^2) + eps))) * weight[w], float32 inside.
//
// A task: some rows. The sum of squares goes through four accumulators of sixteen lanes, added pairwise.

#include <math.h>

#include "pool.hpp"
#include "simd.hpp"

namespace {

using namespace qspec;

template <class T>
void normalise(T* out, const T* x, const float* weight, int64_t width, float eps) {
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

}  // namespace

QSPEC_EXPORT int qspec_rmsnorm(void* out, const void* x, int64_t bf16, const float* weight, float eps,
                               int64_t m, int64_t width, int64_t threads) {
    parallel_ranges(m, 32768 / (width + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; ++i) {
            if (bf16) {
                normalise(static_cast<uint16_t*>(out) + i * width,
                          static_cast<const uint16_t*>(x) + i * width, weight, width, eps);
            } else {
                normalise(static_cast<float*>(out) + i * width, static_cast<const float*>(x) + i * width,
                          weight, width, eps);
            }
        }
    });
    return kDone;
}
