// embedding: out[t] = table[ids[t]] as float32, through BF16 where `rounded` says so.
//
// A task: some tokens.

#include "pool.hpp"
#include "program.hpp"
#include "simd.hpp"

QSPEC_EXPORT int qspec_embedding(float* out, const void* table, int64_t bf16, const int64_t* ids,
                                 int64_t rounded, int64_t tokens, int64_t entries, int64_t width,
                                 int64_t threads) {
    using namespace qspec;
    for (int64_t t = 0; t < tokens; ++t)
        if (ids[t] < 0 || ids[t] >= entries) return kOutOfRange;
    parallel_ranges(tokens, 32768 / (width + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        with_element(bf16 != 0, [&](auto element) {
            using T = decltype(element);
            for (int64_t t = begin; t < end; ++t) {
                const T* in = static_cast<const T*>(table) + ids[t] * width;
                float* to = out + t * width;
                for_lanes(width, [&](int64_t i, int n) { store_lanes(to + i, load_lanes(in + i, n), n); });
                if (rounded && !bf16)
                    for (int64_t i = 0; i < width; ++i) to[i] = bf16_to_float(float_to_bf16(to[i]));
            }
        });
    });
    return kDone;
}

QSPEC_RECORDABLE(embedding)
