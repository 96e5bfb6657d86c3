// Compile-time counts, and how a linear's output is cut into tasks and register tiles. Nothing here touches a
// number.
#pragma once

#include <stdint.h>

namespace qspec {

template <int kValue>
struct Count {
    static constexpr int value = kValue;
};

// body(Count<count>{}), for 1 <= count <= kMost: a run-time count becomes a compile-time one.
template <int kMost, class Body>
inline void with_count(int64_t count, const Body& body) {
    if constexpr (kMost > 1) {
        if (count < kMost) return with_count<kMost - 1>(count, body);
    }
    body(Count<kMost>{});
}

// body(Count<0>{}), body(Count<1>{}), ... body(Count<kEnd - 1>{}).
template <int kEnd, class Body>
inline void for_each_count(const Body& body) {
    if constexpr (kEnd > 0) {
        for_each_count<kEnd - 1>(body);
        body(Count<kEnd - 1>{});
    }
}

// Tiles that a register tile takes side by side where `fitting` do: 4, 2 or 1, so that few are left over.
constexpr int tiles_beside(int fitting) { return fitting >= 4 ? 4 : fitting >= 2 ? 2 : 1; }

// Weight rows per task: small enough that the weights stay in a second-level cache while all rows of x pass
// over them, several tasks for each thread where there is work enough, and no tasks at all (one slice) where
// waking a worker would cost more than it saves.
inline int64_t slice_rows(int64_t n, int64_t row_bytes, int64_t m, int64_t threads, int64_t multiple) {
    constexpr int64_t worth_sharing = 64 << 10, least = 16 << 10;
    // few rows pass over the weights once: nothing need stay, and the longer the stretch, the better it
    // streams
    const int64_t cache = m > 8 ? 256 << 10 : 1 << 20;
    const int64_t bytes = n * row_bytes;
    if (threads < 2 || bytes * (m < 8 ? m : 8) < worth_sharing) return n;
    int64_t wanted = bytes / (threads * 8);
    if (wanted > cache) wanted = cache;
    if (wanted < least) wanted = least;
    int64_t rows = wanted / (row_bytes > 0 ? row_bytes : 1) / multiple * multiple;
    return rows < multiple ? multiple : rows;
}

}  // namespace qspec
