// attention: query t of head h attends keys lo..positions[t] of cache row rows[t] and its kv head,
// h / (heads / kv_heads):
//
//     out[t, h] = sum over j of softmax_j(scale * q[t, h] . k[j]) v[j]
//
// Keys come in blocks of 64 at absolute positions; softmax is running (largest score, sum, weighted values),
// one step per block, so memory is linear and a query's arithmetic depends on its own position alone: decode,
// verification and prefill give it the same bits.
//
// A task: up to 32 queries (consecutive tokens of one cache row, the heads that share a kv head). A block of
// keys is transposed once for all of them, so that lanes are keys; lanes are head features when values are
// summed. Bytes of a call: keys and values below each tile's last position, once.

#include <math.h>

#include "cache.hpp"
#include "math.hpp"
#include "pool.hpp"
#include "program.hpp"
#include "tiles.hpp"

namespace {

using namespace qspec;

constexpr int kBlock = 64;
constexpr int kParts = kBlock / kLanes;
constexpr int kQueries = 32;
constexpr int kJoint =
    kFloatAccumulators >= 16 ? 4 : 1;  // queries whose accumulators fit the registers together

struct Call {
    void* out;
    const void* q;
    bool bf16;
    const void *k_cache, *v_cache;
    bool cache_bf16;
    const int32_t *rows, *positions;
    float scale;
    int64_t window, tokens, heads, kv_heads, capacity, dim;
};

// Head dimensions in whole pairs of registers.
inline int64_t rounded_up(int64_t dim) { return (dim + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes); }

// Scratch of one thread: `wide` is the head dimension rounded up to two registers of lanes.
struct Work {
    float *q, *sum, *keys, *values;

    static int64_t floats(int64_t wide) { return (2 * kQueries + 2 * kBlock) * wide; }
    Work(float* p, int64_t wide)
        : q(p), sum(p + kQueries * wide), keys(sum + kQueries * wide), values(keys + kBlock * wide) {}
};

// One query's running softmax and the keys of the present block that it sees: [lo, hi).
struct Query {
    alignas(64) float weight[kBlock];
    float best = -INFINITY, total = 0, keep = 0;
    int lo = 0, hi = 0;
};

template <class T>
inline f32 load_or_zero(const T* row, int64_t d, int64_t dim) {
    const int64_t left = dim - d;
    return left >= kLanes ? load(row + d) : left > 0 ? load_first(row + d, static_cast<int>(left)) : zero();
}

// bf16 features two by two, the first and the second ones of all pairs apart.
inline void split(i32 pairs, f32& first, f32& second) {
    first = from_bits(shift_left<16>(pairs));
    second = from_bits(bit_and(pairs, set1(static_cast<int32_t>(0xffff0000))));
}

// Two registers of consecutive features; those of bf16 split, which `in_order` undoes.
inline void load_two(const float* row, f32& a, f32& b) {
    a = load(row);
    b = load(row + kLanes);
}
inline void load_two(const uint16_t* row, f32& a, f32& b) { split(load_bits(row), a, b); }

// Rows of whole registers: the cache's own, or where those are none a copy in `room` with zeros behind them.
template <class T>
const T* whole_rows(const T* rows, int count, int64_t dim, int64_t wide, float* room) {
    if (dim == wide) return rows;
    T* copy = reinterpret_cast<T*>(room);
    for (int j = 0; j < count; ++j) {
        memcpy(copy + j * wide, rows + j * dim, sizeof(T) * dim);
        memset(copy + j * wide + dim, 0, sizeof(T) * (wide - dim));
    }
    return copy;
}

// keys[d, j] of one block; keys beyond the given ones are zero.
void transpose_keys(const float* k, int count, int64_t wide, float* keys) {
    for (int j = 0; j < kBlock; j += kLanes)
        for (int64_t d = 0; d < wide; d += kLanes) {
            f32 square[kLanes];
            for (int i = 0; i < kLanes; ++i)
                square[i] = j + i < count ? load(k + (j + i) * wide + d) : zero();
            if (j < count) transpose(square);
            for (int i = 0; i < kLanes; ++i) store(keys + (d + i) * kBlock + j, square[i]);
        }
}
// Pairs of features stay together, so half as much is to be transposed.
void transpose_keys(const uint16_t* k, int count, int64_t wide, float* keys) {
    for (int j = 0; j < kBlock; j += kLanes)
        for (int64_t d = 0; d < wide; d += 2 * kLanes) {
            f32 square[kLanes];
            for (int i = 0; i < kLanes; ++i)
                square[i] = j + i < count ? from_bits(load_bits(k + (j + i) * wide + d)) : zero();
            if (j < count) transpose(square);
            for (int i = 0; i < kLanes; ++i) {
                f32 first, second;
                split(bits(square[i]), first, second);
                store(keys + (d + 2 * i) * kBlock + j, first);
                store(keys + (d + 2 * i + 1) * kBlock + j, second);
            }
        }
}

// Asks for a block of rows before it is needed.
template <class T>
inline void prefetch_rows(const T* rows, int64_t count, int64_t dim) {
    const char* first = reinterpret_cast<const char*>(rows);
    for (int64_t at = 0; at < count * dim * static_cast<int64_t>(sizeof(T)); at += 64)
        __builtin_prefetch(first + at, 0, 2);
}

// The innermost loops are functions of their own: inlined several times into one function GCC keeps their
// registers in memory.
#define QSPEC_OWN_REGISTERS __attribute__((noinline))

template <int kCount>
QSPEC_OWN_REGISTERS void score(const Work& work, Query* queries, int first, int64_t wide, float scale) {
    f32 sum[kCount][kParts];
#pragma GCC unroll 8
    for (int q = 0; q < kCount; ++q)
#pragma GCC unroll 8
        for (int p = 0; p < kParts; ++p) sum[q][p] = zero();
    for (int64_t d = 0; d < wide; ++d) {
        f32 keys[kParts];
#pragma GCC unroll 8
        for (int p = 0; p < kParts; ++p) keys[p] = load(work.keys + d * kBlock + p * kLanes);
#pragma GCC unroll 8
        for (int q = 0; q < kCount; ++q) {
            const f32 x = set1(work.q[(first + q) * wide + d]);
#pragma GCC unroll 8
            for (int p = 0; p < kParts; ++p) sum[q][p] = fma(x, keys[p], sum[q][p]);
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < kCount; ++q)
#pragma GCC unroll 8
        for (int p = 0; p < kParts; ++p)
            store(queries[first + q].weight + p * kLanes, mul(sum[q][p], set1(scale)));
}

// 0, 1, 2, ...: the keys of a block.
struct Numbers {
    alignas(64) float number[kBlock];
    constexpr Numbers() : number() {
        for (int j = 0; j < kBlock; ++j) number[j] = static_cast<float>(j);
    }
};
constexpr Numbers kKeys;

// Scores become weights relative to the largest score so far; `keep` rescales what was summed before.
void soften(Query& query) {
    f32 parts[kParts];
    for (int p = 0; p < kParts; ++p) parts[p] = load(query.weight + p * kLanes);
    if (query.lo > 0 || query.hi < kBlock) {
        const f32 lo = set1(static_cast<float>(query.lo)), hi = set1(static_cast<float>(query.hi));
        for (int p = 0; p < kParts; ++p) {
            const f32 key = load(kKeys.number + p * kLanes), unseen = set1(-INFINITY);
            parts[p] = if_less(key, lo, unseen, if_less(key, hi, parts[p], unseen));
        }
    }
    f32 largest = parts[0];
    for (int p = 1; p < kParts; ++p) largest = max(largest, parts[p]);
    const float block_best = reduce_max(largest);
    const float best = query.best > block_best ? query.best : block_best;
    float factor[kLanes];
    store(factor, exp(set1(query.best - best)));
    for (int p = 0; p < kParts; ++p) {
        parts[p] = exp(sub(parts[p], set1(best)));
        store(query.weight + p * kLanes, parts[p]);
    }
    query.keep = factor[0];
    query.best = best;
    query.total =
        query.total * query.keep + reduce_add(add(add(parts[0], parts[1]), add(parts[2], parts[3])));
}

// sum = sum * keep + weights . values, for kCount queries that see the same keys, 2 * kTwos registers of
// features.
template <int kCount, int kTwos, class T>
QSPEC_OWN_REGISTERS void gather(const Work& work, const T* values, const Query* queries, int first,
                                int64_t wide, int64_t d) {
    f32 sum[kCount][2 * kTwos];
#pragma GCC unroll 8
    for (int q = 0; q < kCount; ++q)
#pragma GCC unroll 8
        for (int i = 0; i < 2 * kTwos; ++i)
            sum[q][i] =
                mul(load(work.sum + (first + q) * wide + d + i * kLanes), set1(queries[first + q].keep));
    for (int j = queries[first].lo; j < queries[first].hi; ++j) {
        f32 value[2 * kTwos];
#pragma GCC unroll 8
        for (int i = 0; i < kTwos; ++i)
            load_two(values + j * wide + d + 2 * i * kLanes, value[2 * i], value[2 * i + 1]);
#pragma GCC unroll 8
        for (int q = 0; q < kCount; ++q) {
            const f32 weight = set1(queries[first + q].weight[j]);
#pragma GCC unroll 8
            for (int i = 0; i < 2 * kTwos; ++i) sum[q][i] = fma(weight, value[i], sum[q][i]);
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < kCount; ++q)
#pragma GCC unroll 8
        for (int i = 0; i < 2 * kTwos; ++i) store(work.sum + (first + q) * wide + d + i * kLanes, sum[q][i]);
}

template <int kCount, class T>
void gather_features(const Work& work, const T* values, const Query* queries, int first, int64_t wide) {
    int64_t d = 0;
    for (; d + 4 * kLanes <= wide; d += 4 * kLanes) gather<kCount, 2>(work, values, queries, first, wide, d);
    for (; d < wide; d += 2 * kLanes) gather<kCount, 1>(work, values, queries, first, wide, d);
}

template <class T>
void step(const Work& work, const T* values, Query* queries, int count, int64_t wide, float scale) {
    int q = 0;
    for (; q + kJoint <= count; q += kJoint) score<kJoint>(work, queries, q, wide, scale);
    for (; q < count; ++q) score<1>(work, queries, q, wide, scale);
    for (q = 0; q < count; ++q)
        if (queries[q].lo < queries[q].hi) soften(queries[q]);
    for (q = 0; q < count;) {
        const Query& first = queries[q];
        int alike = 1;
        while (alike < kJoint && q + alike < count && queries[q + alike].lo == first.lo &&
               queries[q + alike].hi == first.hi)
            ++alike;
        if (first.lo < first.hi) {
            if (alike == kJoint) {
                gather_features<kJoint>(work, values, queries, q, wide);
            } else {
                for (int i = 0; i < alike; ++i) gather_features<1>(work, values, queries, q + i, wide);
            }
        }
        q += alike;
    }
}

// A row of sums with its features in their order, in `room` where that is another one.
template <class T>
const float* in_order(const float* row, int64_t wide, float* room) {
    if (sizeof(T) == sizeof(float)) return row;
    for (int64_t d = 0; d < wide; d += 2 * kLanes)
        for (int i = 0; i < kLanes; ++i) {
            room[d + 2 * i] = row[d + i];
            room[d + 2 * i + 1] = row[d + kLanes + i];
        }
    return room;
}

// Tokens [begin, end) of one cache row, `group` heads from `head` on, which share one kv head.
template <class T>
void attend(const Call& call, const Work& work, int64_t begin, int64_t end, int64_t head, int64_t group) {
    const int64_t dim = call.dim, wide = rounded_up(dim);
    const int64_t kv_head = head / (call.heads / call.kv_heads);
    const int count = static_cast<int>((end - begin) * group);
    Query queries[kQueries];
    int64_t first_key = call.capacity, last_key = 0;
    for (int64_t t = begin; t < end; ++t) {
        const int64_t position = call.positions[t];
        const int64_t start = call.window > 0 && position >= call.window ? position - call.window + 1 : 0;
        if (start < first_key) first_key = start;
        if (position > last_key) last_key = position;
        for (int64_t g = 0; g < group; ++g) {
            float* row = work.q + ((t - begin) * group + g) * wide;
            const int64_t from = (t * call.heads + head + g) * dim;
            for (int64_t d = 0; d < wide; d += kLanes)
                store(row + d, call.bf16 ? load_or_zero(static_cast<const uint16_t*>(call.q) + from, d, dim)
                                         : load_or_zero(static_cast<const float*>(call.q) + from, d, dim));
        }
    }
    memset(work.sum, 0, sizeof(float) * count * wide);

    for (int64_t key = first_key / kBlock * kBlock; key <= last_key; key += kBlock) {
        const int loaded = static_cast<int>(last_key + 1 - key < kBlock ? last_key + 1 - key : kBlock);
        const int64_t at = ((call.rows[begin] * call.kv_heads + kv_head) * call.capacity + key) * dim;
        const T *k = static_cast<const T*>(call.k_cache) + at, *v = static_cast<const T*>(call.v_cache) + at;
        if (key + kBlock <= last_key) {
            const int64_t next = last_key + 1 - key - kBlock;
            prefetch_rows(k + kBlock * dim, next < kBlock ? next : kBlock, dim);
            prefetch_rows(v + kBlock * dim, next < kBlock ? next : kBlock, dim);
        }
        transpose_keys(whole_rows(k, loaded, dim, wide, work.values), loaded, wide, work.keys);
        const T* values = whole_rows(v, loaded, dim, wide, work.values);
        for (int q = 0; q < count; ++q) {
            const int64_t position = call.positions[begin + q / group];
            const int64_t start = call.window > 0 && position >= call.window ? position - call.window + 1 : 0;
            queries[q].lo = static_cast<int>(start > key ? (start - key < kBlock ? start - key : kBlock) : 0);
            queries[q].hi = static_cast<int>(position + 1 - key < kBlock ? position + 1 - key : kBlock);
        }
        step(work, values, queries, count, wide, call.scale);
    }
    for (int q = 0; q < count; ++q) {
        const int64_t to = ((begin + q / group) * call.heads + head + q % group) * dim;
        const float* row = in_order<T>(work.sum + q * wide, wide, work.keys);
        for_lanes(dim, [&](int64_t d, int n) {
            const f32 value = div(load(row + d), set1(queries[q].total));
            if (call.bf16) {
                store_lanes(static_cast<uint16_t*>(call.out) + to + d, value, n);
            } else {
                store_lanes(static_cast<float*>(call.out) + to + d, value, n);
            }
        });
    }
}

}  // namespace

QSPEC_EXPORT int qspec_attention(void* out, const void* q, int64_t bf16, const void* k_cache,
                                 const void* v_cache, int64_t cache_bf16, const int32_t* rows,
                                 const int32_t* positions, float scale, int64_t window, int64_t tokens,
                                 int64_t batch, int64_t heads, int64_t kv_heads, int64_t capacity,
                                 int64_t dim, int64_t threads) {
    if (!slots_inside({batch, kv_heads, capacity, dim}, rows, positions, tokens)) return kOutOfRange;
    const int64_t group = heads / kv_heads, slots = threads < 1 ? 1 : threads;
    const int64_t wide = rounded_up(dim);
    const int64_t together = group < kQueries ? group : kQueries;  // heads of one task
    const int64_t parts = (group + together - 1) / together, most = kQueries / together;
    Scratch<float> work(slots * Work::floats(wide));
    Scratch<int64_t> starts(tokens + 1);
    if (!work.ok() || !starts.ok()) return kOutOfMemory;
    int64_t tiles = 0, keys = 0;
    for (int64_t t = 0; t < tokens; ++t) {
        const bool same = tiles > 0 && rows[t] == rows[t - 1] && t - starts.get()[tiles - 1] < most;
        if (!same) starts.get()[tiles++] = t;
        keys += positions[t] + 1;
    }
    starts.get()[tiles] = tokens;
    const Call call = {out,   q,      bf16 != 0, k_cache, v_cache,  cache_bf16 != 0, rows, positions,
                       scale, window, tokens,    heads,   kv_heads, capacity,        dim};
    const bool share = keys * heads * dim > 65536;
    // The last tiles of a prompt see the most keys: they go first.
    const int64_t head_tasks = kv_heads * parts;
    parallel_ranges(
        tiles * head_tasks, 1, share ? threads : 1, [&](int64_t begin, int64_t end, int64_t slot) {
            const Work mine(work.get() + slot * Work::floats(wide), wide);
            for (int64_t i = begin; i < end; ++i) {
                const int64_t tile = tiles - 1 - i / head_tasks, part = i % parts;
                const int64_t head = i % head_tasks / parts * group + part * together;
                const int64_t left = group - part * together;
                (call.cache_bf16 ? attend<uint16_t> : attend<float>)(call, mine, starts.get()[tile],
                                                                     starts.get()[tile + 1], head,
                                                                     left < together ? left : together);
            }
        });
    return kDone;
}

QSPEC_RECORDABLE(attention)
