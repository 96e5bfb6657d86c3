// silu_mul: every row of x [m, 2 * width] gated (formula: silu_mul.hpp).
//
// A task: some rows.

#include "silu_mul.hpp"

#include "pool.hpp"
#include "program.hpp"

QSPEC_EXPORT int qspec_silu_mul(void* out, const void* x, int64_t bf16, int64_t m, int64_t width,
                                int64_t threads) {
    using namespace qspec;
    parallel_ranges(m, 16384 / (width + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        with_element(bf16 != 0, [&](auto element) {
            using T = decltype(element);
            for (int64_t i = begin; i < end; ++i)
                silu_mul_row(static_cast<T*>(out) + i * width, static_cast<const T*>(x) + 2 * i * width,
                             width);
        });
    });
    return kDone;
}

QSPEC_RECORDABLE(silu_mul)
