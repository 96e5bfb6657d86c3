// cache_write: k_cache[rows[t], h, positions[t], :] = k[t, h, :], likewise v, rounded to the cache's dtype.
//
// Caches are [B, H, C, D]. A task: some tokens.

#include "pool.hpp"
#include "simd.hpp"

namespace {

using namespace qspec;

template <class To, class From>
void copy(To* out, const From* x, int64_t n) {
    for_lanes(n, [&](int64_t i, int lanes) { store_lanes(out + i, load_lanes(x + i, lanes), lanes); });
}

void copy_head(void* cache, bool cache_bf16, int64_t to, const void* x, bool bf16, int64_t from, int64_t n) {
    auto run = [&](auto* out) {
        if (bf16) {
            copy(out + to, static_cast<const uint16_t*>(x) + from, n);
        } else {
            copy(out + to, static_cast<const float*>(x) + from, n);
        }
    };
    if (cache_bf16) {
        run(static_cast<uint16_t*>(cache));
    } else {
        run(static_cast<float*>(cache));
    }
}

}  // namespace

QSPEC_EXPORT int qspec_cache_write(void* k_cache, void* v_cache, int64_t cache_bf16, const void* k,
                                   const void* v, int64_t bf16, const int32_t* rows, const int32_t* positions,
                                   int64_t tokens, int64_t heads, int64_t capacity, int64_t dim,
                                   int64_t k_stride, int64_t v_stride, int64_t threads) {
    parallel_ranges(tokens, 32768 / (heads * dim + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t t = begin; t < end; ++t)
            for (int64_t h = 0; h < heads; ++h) {
                const int64_t to = ((rows[t] * heads + h) * capacity + positions[t]) * dim;
                copy_head(k_cache, cache_bf16, to, k, bf16, t * k_stride + h * dim, dim);
                copy_head(v_cache, cache_bf16, to, v, bf16, t * v_stride + h * dim, dim);
            }
    });
    return kDone;
}
