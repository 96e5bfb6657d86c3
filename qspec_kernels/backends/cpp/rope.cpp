// rope: every head of every token rotated (formula: rope.hpp).
//
// A task: some tokens; the angles of a token are computed once for all heads.

#include "rope.hpp"

#include "pool.hpp"
#include "program.hpp"

QSPEC_EXPORT int qspec_rope(void* out, const void* x, int64_t bf16, const int32_t* positions,
                            const float* inv_freq, float scaling, int64_t tokens, int64_t heads, int64_t dim,
                            int64_t threads) {
    using namespace qspec;
    const int64_t half = dim / 2, slots = threads < 1 ? 1 : threads;
    Scratch<float> angles(slots * dim);
    if (!angles.ok()) return kOutOfMemory;
    parallel_ranges(tokens, 16384 / (heads * dim + 1), threads,
                    [&](int64_t begin, int64_t end, int64_t slot) {
                        float* cosines = angles.get() + slot * dim;
                        float* sines = cosines + half;
                        with_element(bf16 != 0, [&](auto element) {
                            using T = decltype(element);
                            for (int64_t t = begin; t < end; ++t) {
                                rope_angles(cosines, sines, positions[t], inv_freq, scaling, half);
                                for (int64_t h = 0; h < heads; ++h) {
                                    const int64_t at = (t * heads + h) * dim;
                                    rope_head(static_cast<T*>(out) + at, static_cast<const T*>(x) + at,
                                              cosines, sines, half);
                                }
                            }
                        });
                    });
    return kDone;
}

QSPEC_RECORDABLE(rope)
