// hadamard: every row of x transformed (formula: hadamard.hpp), float32 inside, the output in x's dtype.
//
// A task: some rows.

#include "hadamard.hpp"
#include "pool.hpp"

QSPEC_EXPORT int qspec_hadamard(void* out, const void* x, int64_t bf16, const int8_t* base, int64_t base_size,
                                int64_t transpose, int64_t rows, int64_t width, int64_t threads) {
    using namespace qspec;
    Scratch<float> signs(base_size * base_size);
    const int64_t slots = threads < 1 ? 1 : threads;
    Scratch<float> work(slots * 2 * width);
    if (!signs.ok() || !work.ok()) return kOutOfMemory;
    spread_signs(signs.get(), base, base_size, transpose != 0);
    parallel_ranges(
        rows, 16384 / (width * base_size + 1), threads, [&](int64_t begin, int64_t end, int64_t slot) {
            float* in = work.get() + slot * 2 * width;
            float* result = in + width;
            for (int64_t i = begin; i < end; ++i) {
                if (bf16) {
                    widen(in, static_cast<const uint16_t*>(x) + i * width, width);
                    hadamard_row(result, in, signs.get(), base_size, width);
                    auto* row = static_cast<uint16_t*>(out) + i * width;
                    for_lanes(width,
                              [&](int64_t j, int n) { store_lanes(row + j, load_lanes(result + j, n), n); });
                } else {
                    widen(in, static_cast<const float*>(x) + i * width, width);
                    hadamard_row(static_cast<float*>(out) + i * width, in, signs.get(), base_size, width);
                }
            }
        });
    return kDone;
}
