// quantize_act: int8 codes [m, k] and float32 scales [m, groups] of activations (formula: quantize.hpp).
//
// A task: some rows. Each row is read twice, the second time from the first-level cache.

#include "pool.hpp"
#include "program.hpp"
#include "quantize.hpp"

QSPEC_EXPORT int qspec_quantize_act(int8_t* codes, float* scales, const void* x, int64_t bf16, int64_t m,
                                    int64_t k, int64_t group_size, float qmax, float clip, int64_t threads) {
    using namespace qspec;
    const int64_t groups = (k + group_size - 1) / group_size;
    parallel_ranges(m, 32768 / (k + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; ++i) {
            if (bf16) {
                const auto* row = static_cast<const uint16_t*>(x) + i * k;
                quantize_row(row, codes + i * k, scales + i * groups, k, group_size, qmax, clip);
            } else {
                const auto* row = static_cast<const float*>(x) + i * k;
                quantize_row(row, codes + i * k, scales + i * groups, k, group_size, qmax, clip);
            }
        }
    });
    return kDone;
}

QSPEC_RECORDABLE(quantize_act)
