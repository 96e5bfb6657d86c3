// cache_write: k_cache[rows[t], h, positions[t], :] = k[t, h, :], likewise v, rounded to the cache's dtype.
//
// Caches are [B, H, C, D]. A task: some tokens.

#include "cache.hpp"
#include "pool.hpp"
#include "program.hpp"

QSPEC_EXPORT int qspec_cache_write(void* k_cache, void* v_cache, int64_t cache_bf16, const void* k,
                                   const void* v, int64_t bf16, const int32_t* rows, const int32_t* positions,
                                   int64_t tokens, int64_t batch, int64_t heads, int64_t capacity,
                                   int64_t dim, int64_t threads) {
    using namespace qspec;
    const CacheShape shape = {batch, heads, capacity, dim};
    if (!slots_inside(shape, rows, positions, tokens)) return kOutOfRange;
    parallel_ranges(tokens, 32768 / (heads * dim + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        with_element(cache_bf16 != 0, [&](auto to_element) {
            with_element(bf16 != 0, [&](auto element) {
                using To = decltype(to_element);
                using T = decltype(element);
                for (int64_t t = begin; t < end; ++t)
                    for (int64_t h = 0; h < heads; ++h) {
                        const int64_t to = shape.at(rows[t], h, positions[t]);
                        const int64_t from = (t * heads + h) * dim;
                        copy_head(static_cast<To*>(k_cache) + to, static_cast<const T*>(k) + from, dim);
                        copy_head(static_cast<To*>(v_cache) + to, static_cast<const T*>(v) + from, dim);
                    }
            });
        });
    });
    return kDone;
}

QSPEC_RECORDABLE(cache_write)
