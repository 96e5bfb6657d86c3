// The eight tile registers of AMX, and what the linears that use them share.
//
// A tile has up to sixteen rows of 64 bytes. Here tiles 0..3 are sums, 4 and 5 first operands, 6 and 7 second
// ones, and sum 2 i + j collects operand 4 + i times operand 6 + j. In a first operand a row is one row of
// the product and K runs along it; in a second one a 32-bit column is one column of the product, and each row
// holds the next 32 bits of K of all of them: two BF16 values or four bytes.
//
// An element of a sum depends on its own row and column and on nothing else: TDPBF16PS adds the products of
// the even k, in order, and those of the odd k, in order, then the two results, and the outcome to the sum,
// whatever the number of rows and columns. So a row of a linear is the same for every M as long as K is cut
// alike.
#pragma once

#include "pool.hpp"
#include "simd.hpp"
#include "tiles.hpp"

#if defined(QSPEC_EMULATED_TILES) || (defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__))
#define QSPEC_HAS_TILES 1
#endif

#if defined(QSPEC_HAS_TILES)

namespace qspec {

inline constexpr int64_t kTileRows = 16;

// What LDTILECFG reads. Sums have `rows` rows and `columns` 32-bit columns; `depth` is the number of bytes of
// K that a pair of operands covers.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    TileConfig() = default;
    TileConfig(int64_t row_count, int64_t depth, int64_t columns) {
        for (int i = 0; i < 8; ++i) {
            row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? depth : 4 * columns);
            rows[i] = static_cast<uint8_t>(i < 6 ? row_count : depth / 4);
        }
    }
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace qspec

#if defined(QSPEC_EMULATED_TILES)
#include QSPEC_EMULATED_TILES  // the instructions in plain C++, for tests
#else

namespace qspec {

// The instructions themselves: the compiler's intrinsics take literal register numbers only, and some
// versions do not say that they touch memory.
inline void configure_tiles(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
inline void save_tiles(TileConfig& config) { asm volatile("sttilecfg %0" : "=m"(config)); }
inline void release_tiles() { asm volatile("tilerelease"); }
template <int kTile>
inline void zero_tile() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}
// sum += pairs of BF16 values of the first operand times those of the second.
template <int kSum, int kFirst, int kSecond>
inline void dot_bf16_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kFirst), "i"(kSecond));
}
// sum += four signed bytes of the first operand times those of the second.
template <int kSum, int kFirst, int kSecond>
inline void dot_byte_tiles() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kFirst), "i"(kSecond));
}

}  // namespace qspec

#endif

namespace qspec {

// The tile registers of this thread while a task needs them. Given back afterwards: registers in use make
// every switch of threads slower, and keep the core from its deeper sleep. A configuration that was there
// stays: llama.cpp in the same process configures a thread once and counts on that for ever.
class TileScope {
   public:
    explicit TileScope(const TileConfig& config) {
        save_tiles(before_);
        configure_tiles(config);
    }
    ~TileScope() {
        if (before_.palette == 0) {
            release_tiles();
        } else {
            configure_tiles(before_);
        }
    }
    TileScope(const TileScope&) = delete;
    TileScope& operator=(const TileScope&) = delete;

   private:
    TileConfig before_;
};

struct Bf16Tiles {
    template <int kSum, int kFirst, int kSecond>
    static void dot() {
        dot_bf16_tiles<kSum, kFirst, kSecond>();
    }
};

struct ByteTiles {
    template <int kSum, int kFirst, int kSecond>
    static void dot() {
        dot_byte_tiles<kSum, kFirst, kSecond>();
    }
};

inline void zero_sums() {
    zero_tile<0>();
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
}

// One step of K: kFirst first operands times kSecond second ones.
template <class Tiles, int kFirst, int kSecond>
inline void multiply_tiles(const uint8_t* first, const uint8_t* other_first, int64_t first_stride,
                           const uint8_t* second, const uint8_t* other_second, int64_t second_stride) {
    load_tile<4>(first, first_stride);
    load_tile<6>(second, second_stride);
    Tiles::template dot<0, 4, 6>();
    if constexpr (kSecond > 1) {
        load_tile<7>(other_second, second_stride);
        Tiles::template dot<1, 4, 7>();
    }
    if constexpr (kFirst > 1) {
        load_tile<5>(other_first, first_stride);
        Tiles::template dot<2, 5, 6>();
        if constexpr (kSecond > 1) Tiles::template dot<3, 5, 7>();
    }
}

// One step of K: one first operand times three or four second ones, `second_bytes` apart.
template <class Tiles, int kSecond>
inline void multiply_by_many(const uint8_t* first, int64_t first_stride, const uint8_t* second,
                             int64_t second_bytes) {
    load_tile<4>(first, first_stride);
    load_tile<6>(second, 64);
    Tiles::template dot<0, 4, 6>();
    load_tile<7>(second + second_bytes, 64);
    Tiles::template dot<1, 4, 7>();
    load_tile<6>(second + 2 * second_bytes, 64);
    Tiles::template dot<2, 4, 6>();
    if constexpr (kSecond > 3) {
        load_tile<7>(second + 3 * second_bytes, 64);
        Tiles::template dot<3, 4, 7>();
    }
}

// One step of K: three or four first operands, `first_bytes` apart, times one second one.
template <class Tiles, int kFirst>
inline void multiply_many_by(const uint8_t* first, int64_t first_bytes, int64_t first_stride,
                             const uint8_t* second) {
    load_tile<6>(second, 64);
    load_tile<4>(first, first_stride);
    Tiles::template dot<0, 4, 6>();
    load_tile<5>(first + first_bytes, first_stride);
    Tiles::template dot<1, 5, 6>();
    load_tile<4>(first + 2 * first_bytes, first_stride);
    Tiles::template dot<2, 4, 6>();
    if constexpr (kFirst > 3) {
        load_tile<5>(first + 3 * first_bytes, first_stride);
        Tiles::template dot<3, 5, 6>();
    }
}

// Sums of sixteen rows of sixteen 32-bit lanes, as memory holds them: kSumLanes words each.
inline constexpr int64_t kSumLanes = 256;

template <int kFirst, int kSecond>
inline void store_sums(void* to, int64_t stride) {
    auto* sums = static_cast<int32_t*>(to);
    store_tile<0>(sums, stride);
    if constexpr (kSecond > 1) store_tile<1>(sums + kSumLanes, stride);
    if constexpr (kFirst > 1) store_tile<2>(sums + 2 * kSumLanes, stride);
    if constexpr (kFirst > 1 && kSecond > 1) store_tile<3>(sums + 3 * kSumLanes, stride);
}

template <int kFirst, int kSecond>
inline void load_sums(const void* from, int64_t stride) {
    const auto* sums = static_cast<const int32_t*>(from);
    load_tile<0>(sums, stride);
    if constexpr (kSecond > 1) load_tile<1>(sums + kSumLanes, stride);
    if constexpr (kFirst > 1) load_tile<2>(sums + 2 * kSumLanes, stride);
    if constexpr (kFirst > 1 && kSecond > 1) load_tile<3>(sums + 3 * kSumLanes, stride);
}

// Up to four blocks of sixteen rows of x have their sums in the registers beside a tile of weights, so that
// each weight is needed once: weights stream from memory, past x in the second-level cache. More blocks take
// turns, four at a time, as long as what must stay in that cache is half of it at most; weights then come
// from memory for the first four and from the cache for the others.
inline constexpr int64_t kStreamBlocks = 4, kStreamBytes = 1 << 20;

// More rows still (a prompt, a large batch) are worked off in panels: up to 512 rows of x times up to 256
// weight rows, part of K by part of K. A part of 32 weight rows, copied or expanded once, stays in the
// first-level cache while all pairs of blocks of x pass over it, and a part of x in the second-level cache
// while all weight rows of the panel do. Unfinished sums wait in memory for the next part: a store and a
// load, which change no bit.
inline constexpr int64_t kPanelBlocks = 32, kPanelPairs = 8;

// prepare(part, pair) once, then multiply(Count<blocks>{}, part, pair, block, kept) for every one or two
// blocks of x, where `kept` < panel_sums() counts the sums that wait.
template <class Prepare, class Multiply>
inline void for_panels(int64_t blocks, int64_t parts, int64_t pairs, const Prepare& prepare,
                       const Multiply& multiply) {
    for (int64_t first = 0; first < blocks; first += kPanelBlocks) {
        const int64_t last = blocks - first < kPanelBlocks ? blocks : first + kPanelBlocks;
        for (int64_t part = 0; part < parts; ++part)
            for (int64_t pair = 0; pair < pairs; ++pair) {
                prepare(part, pair);
                for (int64_t block = first; block < last; block += 2)
                    with_count<2>(last - block > 1 ? 2 : 1, [&](auto count) {
                        multiply(count, part, pair, block, 2 * (pair * kPanelBlocks + block - first));
                    });
            }
    }
}

// Sums that wait in a panel of this many blocks of x.
inline int64_t panel_sums(int64_t blocks, int64_t pairs) {
    return 2 * ((pairs < kPanelPairs ? pairs : kPanelPairs) - 1) * kPanelBlocks +
           2 * (blocks < kPanelBlocks ? blocks + 1 : kPanelBlocks);
}

// Pairs of tiles of weight rows in a task: a few tasks for each thread, at most a panel each.
inline int64_t panel_pairs(int64_t pairs, int64_t threads) {
    const int64_t wanted = pairs / ((threads < 1 ? 1 : threads) * 4);
    return wanted < 1 ? 1 : wanted > kPanelPairs ? kPanelPairs : wanted;
}

// Where the outputs of a call go, and what is added to them; the residual is of the outputs' type.
struct Outputs {
    void* out;
    const float* bias;
    const void* residual;
    bool bf16;
    int64_t n;

    // Sixteen features of one row, or those that there are: the bias, then the residual, which is added to
    // what the linear alone would have stored.
    void finish(int64_t m, int64_t feature, f32 value) const {
        const int lanes = n - feature < kLanes ? static_cast<int>(n - feature) : kLanes;
        if (bias) value = add(value, load_lanes(bias + feature, lanes));
        const int64_t at = m * n + feature;
        with_element(bf16, [&](auto element) {
            using T = decltype(element);
            T* to = static_cast<T*>(out) + at;
            store_lanes(to, value, lanes);
            if (!residual) return;
            const f32 more = load_lanes(static_cast<const T*>(residual) + at, lanes);
            store_lanes(to, add(more, load_lanes(to, lanes)), lanes);
        });
    }
};

}  // namespace qspec

#endif
