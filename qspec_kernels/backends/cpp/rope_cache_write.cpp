// rope_cache_write: what lies between the fused query, key and value projection and attention, in one pass.
//
// Of each token's heads [q | k | v], queries are normalised (where a gain is given), rotated and written to
// `q`; keys the same into the cache; values go into the cache as they are. Equals rmsnorm, rope and
// cache_write one after the other bit for bit, their roundings to x's dtype included.
//
// A task: some tokens; the angles of a token are computed once for all heads.

#include "cache.hpp"
#include "pool.hpp"
#include "program.hpp"
#include "rmsnorm.hpp"
#include "rope.hpp"

QSPEC_EXPORT int qspec_rope_cache_write(void* q, void* k_cache, void* v_cache, int64_t cache_bf16,
                                        const void* x, int64_t bf16, const int32_t* rows,
                                        const int32_t* positions, const float* inv_freq, float scaling,
                                        const float* q_gain, const float* k_gain, float eps, int64_t tokens,
                                        int64_t batch, int64_t q_heads, int64_t heads, int64_t capacity,
                                        int64_t dim, int64_t threads) {
    using namespace qspec;
    const CacheShape shape = {batch, heads, capacity, dim};
    if (!slots_inside(shape, rows, positions, tokens)) return kOutOfRange;
    const int64_t half = dim / 2, width = (q_heads + 2 * heads) * dim, slots = threads < 1 ? 1 : threads;
    Scratch<float> work(slots * 3 * dim);
    if (!work.ok()) return kOutOfMemory;

    parallel_ranges(tokens, 16384 / (width + 1), threads, [&](int64_t begin, int64_t end, int64_t slot) {
        float* cosines = work.get() + slot * 3 * dim;
        float* sines = cosines + half;
        with_element(bf16 != 0, [&](auto element) {
            using T = decltype(element);
            T* head = reinterpret_cast<T*>(cosines + dim);
            T* turned = reinterpret_cast<T*>(cosines + 2 * dim);
            const auto turn = [&](T* out, const T* in, const float* gain) {
                if (gain) {
                    rmsnorm_row(head, in, gain, dim, eps);
                    in = head;
                }
                rope_head(out, in, cosines, sines, half);
            };
            for (int64_t t = begin; t < end; ++t) {
                rope_angles(cosines, sines, positions[t], inv_freq, scaling, half);
                const T* in = static_cast<const T*>(x) + t * width;
                T* out = static_cast<T*>(q) + t * q_heads * dim;
                for (int64_t h = 0; h < q_heads; ++h) turn(out + h * dim, in + h * dim, q_gain);
                in += q_heads * dim;
                with_element(cache_bf16 != 0, [&](auto to_element) {
                    using To = decltype(to_element);
                    for (int64_t h = 0; h < heads; ++h) {
                        const int64_t to = shape.at(rows[t], h, positions[t]);
                        turn(turned, in + h * dim, k_gain);
                        copy_head(static_cast<To*>(k_cache) + to, turned, dim);
                        copy_head(static_cast<To*>(v_cache) + to, in + (heads + h) * dim, dim);
                    }
                });
            }
        });
    });
    return kDone;
}

QSPEC_RECORDABLE(rope_cache_write)
