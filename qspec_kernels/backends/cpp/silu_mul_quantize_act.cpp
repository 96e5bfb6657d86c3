// silu_mul_quantize_act: silu_mul of a row, then quantize_act of it, while it is in the caches.
//
// Equals the two ops one after the other bit for bit: the gated row is rounded to x's dtype in between.
// A task: some rows.

#include "pool.hpp"
#include "program.hpp"
#include "quantize.hpp"
#include "silu_mul.hpp"

QSPEC_EXPORT int qspec_silu_mul_quantize_act(int8_t* codes, float* scales, const void* x, int64_t bf16,
                                             int64_t m, int64_t width, int64_t group_size, float qmax,
                                             float clip, int64_t threads) {
    using namespace qspec;
    const int64_t groups = (width + group_size - 1) / group_size, slots = threads < 1 ? 1 : threads;
    Scratch<float> work(slots * width);
    if (!work.ok()) return kOutOfMemory;
    parallel_ranges(m, 8192 / (width + 1), threads, [&](int64_t begin, int64_t end, int64_t slot) {
        with_element(bf16 != 0, [&](auto element) {
            using T = decltype(element);
            T* row = reinterpret_cast<T*>(work.get() + slot * width);
            for (int64_t i = begin; i < end; ++i) {
                silu_mul_row(row, static_cast<const T*>(x) + 2 * i * width, width);
                quantize_row(row, codes + i * width, scales + i * groups, width, group_size, qmax, clip);
            }
        });
    });
    return kDone;
}

QSPEC_RECORDABLE(silu_mul_quantize_act)
