// rmsnorm: every row of x normalised (formula: rmsnorm.hpp).
//
// A task: some rows.

#include "rmsnorm.hpp"

#include "pool.hpp"
#include "program.hpp"

QSPEC_EXPORT int qspec_rmsnorm(void* out, const void* x, int64_t bf16, const float* weight, float eps,
                               int64_t m, int64_t width, int64_t threads) {
    using namespace qspec;
    parallel_ranges(m, 32768 / (width + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        with_element(bf16 != 0, [&](auto element) {
            using T = decltype(element);
            for (int64_t i = begin; i < end; ++i)
                rmsnorm_row(static_cast<T*>(out) + i * width, static_cast<const T*>(x) + i * width, weight,
                            width, eps);
        });
    });
    return kDone;
}

QSPEC_RECORDABLE(rmsnorm)
