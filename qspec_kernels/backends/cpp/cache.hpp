// Keys and values in a cache [B, H, C, D] of float32 or BF16.
#pragma once

#include "simd.hpp"

namespace qspec {

template <class To, class From>
inline void copy_head(To* out, const From* x, int64_t dim) {
    for_lanes(dim, [&](int64_t i, int lanes) { store_lanes(out + i, load_lanes(x + i, lanes), lanes); });
}

struct CacheShape {
    int64_t batch, heads, capacity, dim;

    bool holds(int32_t row, int32_t position) const {
        return row >= 0 && row < batch && position >= 0 && position < capacity;
    }
    int64_t at(int32_t row, int64_t head, int32_t position) const {
        return ((row * heads + head) * capacity + position) * dim;
    }
};

// Whether every token's slot lies inside: what a replayed call is not checked for anywhere else.
inline bool slots_inside(const CacheShape& shape, const int32_t* rows, const int32_t* positions,
                         int64_t tokens) {
    for (int64_t t = 0; t < tokens; ++t)
        if (!shape.holds(rows[t], positions[t])) return false;
    return true;
}

}  // namespace qspec
