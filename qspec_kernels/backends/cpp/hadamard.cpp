// hadamard: every block of x transformed (formula: hadamard.hpp), float32 inside, the output in x's dtype.
//
// A diagonal, one factor per feature of x's rows (`period` blocks each), multiplies before the transform, or
// after the transposed one. A task: some blocks.

#include "hadamard.hpp"

#include "pool.hpp"
#include "program.hpp"

QSPEC_EXPORT int qspec_hadamard(void* out, const void* x, int64_t bf16, const int8_t* base, int64_t base_size,
                                int64_t transpose, const float* diagonal, int64_t period, int64_t blocks,
                                int64_t width, int64_t threads) {
    using namespace qspec;
    Scratch<float> signs(base_size * base_size);
    const int64_t slots = threads < 1 ? 1 : threads;
    Scratch<float> work(slots * 2 * width);
    if (!signs.ok() || !work.ok()) return kOutOfMemory;
    spread_signs(signs.get(), base, base_size, transpose != 0);
    const auto scale = [&](float* row, int64_t block) {
        scale_row(row, diagonal + block % period * width, width);
    };
    parallel_ranges(
        blocks, 16384 / (width * base_size + 1), threads, [&](int64_t begin, int64_t end, int64_t slot) {
            float* in = work.get() + slot * 2 * width;
            float* result = in + width;
            with_element(bf16 != 0, [&](auto element) {
                using T = decltype(element);
                for (int64_t i = begin; i < end; ++i) {
                    widen(in, static_cast<const T*>(x) + i * width, width);
                    if (diagonal && !transpose) scale(in, i);
                    hadamard_row(result, in, signs.get(), base_size, width);
                    if (diagonal && transpose) scale(result, i);
                    T* row = static_cast<T*>(out) + i * width;
                    for_lanes(width,
                              [&](int64_t j, int n) { store_lanes(row + j, load_lanes(result + j, n), n); });
                }
            });
        });
    return kDone;
}

QSPEC_RECORDABLE(hadamard)
