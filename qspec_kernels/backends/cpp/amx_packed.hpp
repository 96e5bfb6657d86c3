// 4-bit weights by the tile registers of AMX: what linear_integer.hpp and linear_float.hpp compute.
//
// Rows of x are first operands, up to sixteen a block, and sixteen output features a second one: a slice of a
// chunk, expanded to bytes or BF16 values, is already the 32 bits of K of sixteen features that a row of it
// holds. A step covers up to 64 bytes of K of one scale group; the last step of a group is filled with zeros.
// Sums of a group leave the registers, are scaled and added, group after group.
//
// Integer sums are exact, so there the bits are those of any other path, and a few rows of x are left to
// VNNI. Float sums follow the steps from the group's first, in the instruction's own order inside a step, and
// that for every M: one row costs the look-up that VDPBF16PS needs as well, a store and a load next to the
// core, and a cycle for the product; each further row costs that cycle alone.
//
// For up to 32 rows of x each weight is needed once: a step is expanded while the one before it is
// multiplied, so that the tile loads find their bytes in the first-level cache and not in the store buffer.
// For more, parts of two tiles of features are expanded once for all blocks of x (for_panels).
#pragma once

#include "amx_tiles.hpp"
#include "bf16_weights.hpp"
#include "packed.hpp"

#if defined(QSPEC_HAS_TILES)

namespace qspec {

// Bytes: int8 codes of x times signed integer values, which for MXFP4 are doubled as in packed.hpp.
template <class FormatOf>
struct IntegerSteps {
    using Format = FormatOf;
    using Tiles = ByteTiles;
    using Element = int8_t;
    static constexpr int64_t kChunkBytes = 8;

    uint8_t table[16];

    IntegerSteps() {
        for (int i = 0; i < 16; ++i) {
            const float value = Format::kValues[i] * (Format::kOffset == 12 ? 2 : 1);
            table[i] = static_cast<uint8_t>(static_cast<int8_t>(value));
        }
    }
    void expand(const uint8_t* chunk, uint8_t* out) const {
        const Bytes8 values = lookup(split_nibbles(load_bits(chunk)), table);
        store_bits(out, values.low);
        store_bits(out + 64, values.high);
    }
    // A step of one row of x, `count` elements and zeros behind them.
    static void arrange(const int8_t* x, int64_t count, int64_t depth, uint8_t* out) {
        memcpy(out, x, count);
        memset(out + count, 0, depth * 8 - count);
    }
    static f32 weight_scale(const typename Format::Scale* p) { return Format::integer_scale(p); }
    static f32 scaled(const int32_t* sums, f32 weight_scale, float x_scale) {
        return mul(to_float(load_bits(sums)), mul(weight_scale, set1(x_scale)));
    }
};

// BF16: a slice of a chunk is a pair of its k, (0, 2), (4, 6), (1, 3), (5, 7).
template <class FormatOf, class T>
struct FloatSteps {
    using Format = FormatOf;
    using Tiles = Bf16Tiles;
    using Element = T;
    static constexpr int64_t kChunkBytes = 16;

    i32 table;

    FloatSteps() {
        uint16_t entries[32];
        for (int i = 0; i < 32; ++i) entries[i] = float_to_bf16(Format::kValues[i % 16]);
        table = load_bits(entries);
    }
    void expand(const uint8_t* chunk, uint8_t* out) const {
        const i32 codes = load_bits(chunk);
        for_each_count<4>([&](auto slice) {
            constexpr int s = decltype(slice)::value;
            store_bits(out + s * 64, lookup_pairs<s>(codes, table));
        });
    }
    static void arrange(const T* x, int64_t count, int64_t depth, uint8_t* out) {
        uint16_t values[32] = {};
        Bf16Weights::arrange(x, values, count);
        const __m128i pairs = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        for (int64_t c = 0; c < depth; ++c) {
            const __m128i chunk = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + c * 8));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + c * 16), _mm_shuffle_epi8(chunk, pairs));
        }
    }
    static f32 weight_scale(const typename Format::Scale* p) { return Format::scale(p); }
    static f32 scaled(const int32_t* sums, f32 weight_scale, float) {
        return mul(from_bits(load_bits(sums)), weight_scale);
    }
};

template <class Steps>
struct TileCall {
    using Format = typename Steps::Format;

    Steps kind;
    PackedMatrix<Format> weight;
    const float* x_scales;  // [m, scale_columns]; integer linears alone
    int64_t scale_columns;
    Outputs outputs;
    int64_t m;
    int64_t rows;                // of x in a block
    int64_t depth;               // chunks in a step
    int64_t group_steps;         // steps in a group, but for the last one
    const uint8_t* x = nullptr;  // [blocks][steps][rows][depth * kChunkBytes]

    TileCall(const PackedMatrix<Format>& weight, const float* x_scales, int64_t scale_columns,
             const Outputs& outputs, int64_t m)
        : weight(weight), x_scales(x_scales), scale_columns(scale_columns), outputs(outputs), m(m) {
        const int64_t longest = weight.group_chunks < weight.chunks ? weight.group_chunks : weight.chunks;
        const int64_t most = 64 / Steps::kChunkBytes;
        rows = m < kTileRows ? m : kTileRows;
        depth = longest < most ? longest : most;
        group_steps = (longest + depth - 1) / depth;
    }
    int64_t blocks() const { return (m + rows - 1) / rows; }
    int64_t first_step(int64_t g) const { return g * group_steps; }
    int64_t steps_of(int64_t g) const {
        return (weight.group_end(g) - g * weight.group_chunks + depth - 1) / depth;
    }
    int64_t steps() const { return first_step(weight.groups - 1) + steps_of(weight.groups - 1); }
    int64_t row_bytes() const { return depth * Steps::kChunkBytes; }
    int64_t x_step_bytes() const { return rows * row_bytes(); }
    int64_t weight_step_bytes() const { return row_bytes() * 16; }  // of one tile
    TileConfig config() const { return {rows, row_bytes(), kTileRows}; }
    // The second tile of a pair; the last one of an odd number is computed twice and stored once.
    int64_t other(int64_t tile) const { return tile + 1 < weight.tiles ? tile + 1 : tile; }
};

// Step `s` of group `g` of a pair of tiles.
template <class Steps>
inline void expand_step(const TileCall<Steps>& call, int64_t tile, int64_t g, int64_t s, uint8_t* out) {
    const auto& w = call.weight;
    const int64_t begin = g * w.group_chunks + s * call.depth, end = w.group_end(g);
    const int64_t count = end - begin < call.depth ? end - begin : call.depth;
    for (const int64_t t : {tile, call.other(tile)}) {
        const uint8_t* data = w.tile(t);
        for (int64_t c = 0; c < count; ++c) {
            __builtin_prefetch(data + ahead(begin + c, w.chunks, 2) * 64);
            call.kind.expand(data + (begin + c) * 64, out + c * 16 * Steps::kChunkBytes);
        }
        const int64_t filled = count * 16 * Steps::kChunkBytes;
        memset(out + filled, 0, call.weight_step_bytes() - filled);
        out += call.weight_step_bytes();
    }
}

// Steps expanded as they are asked for, one ahead, in two places that take turns.
template <class Steps>
class StepsAhead {
   public:
    StepsAhead(const TileCall<Steps>& call, int64_t tile) : call_(call), tile_(tile) { expand(); }
    const uint8_t* next() {
        expand();
        return places_[expanded_ % 2];
    }

   private:
    void expand() {
        if (g_ < call_.weight.groups) {
            expand_step(call_, tile_, g_, step_, places_[expanded_ % 2]);
            if (++step_ == call_.steps_of(g_)) {
                step_ = 0;
                ++g_;
            }
        }
        ++expanded_;
    }

    const TileCall<Steps>& call_;
    const int64_t tile_;
    int64_t g_ = 0, step_ = 0, expanded_ = 0;
    alignas(64) uint8_t places_[2][2048];
};

// Steps that stand one behind the other.
struct StepsReady {
    const uint8_t* at;
    int64_t bytes;
    const uint8_t* next() { return (at += bytes) - bytes; }
};

// Groups [begin, end) of one or two blocks of x times a pair of tiles: totals [kBlocks][2 tiles][rows of 16].
template <int kBlocks, class Steps, class Weights>
inline void add_groups(const TileCall<Steps>& call, int64_t tile, int64_t block, int64_t begin, int64_t end,
                       Weights& weights, float* totals) {
    const auto& w = call.weight;
    const int64_t block_bytes = call.steps() * call.x_step_bytes(), scale_step = call.scale_columns > 1;
    const uint8_t* x = call.x + block * block_bytes + call.first_step(begin) * call.x_step_bytes();
    alignas(64) int32_t sums[2 * kBlocks * kSumLanes];
    for (int64_t g = begin; g < end; ++g) {
        zero_sums();
        for (int64_t s = call.steps_of(g); s > 0; --s, x += call.x_step_bytes()) {
            const uint8_t* step = weights.next();
            multiply_tiles<typename Steps::Tiles, kBlocks, 2>(x, x + block_bytes, call.row_bytes(), step,
                                                              step + call.weight_step_bytes(), 64);
        }
        store_sums<kBlocks, 2>(sums, 64);
        const f32 scales[2] = {Steps::weight_scale(w.tile_scales(tile) + g * 16),
                               Steps::weight_scale(w.tile_scales(call.other(tile)) + g * 16)};
        for (int b = 0; b < kBlocks; ++b) {
            const int64_t m = (block + b) * call.rows, left = call.m - m;
            const int64_t rows = left < call.rows ? left : call.rows;
            for (int t = 0; t < 2; ++t) {
                const int32_t* from = sums + (2 * b + t) * kSumLanes;
                float* to = totals + (2 * b + t) * kSumLanes;
                for (int64_t i = 0; i < rows; ++i, from += 16, to += 16) {
                    const float x_scale =
                        call.x_scales ? call.x_scales[(m + i) * call.scale_columns + g * scale_step] : 1;
                    store(to, add(load(to), Steps::scaled(from, scales[t], x_scale)));
                }
            }
        }
    }
}

template <int kBlocks, class Steps>
inline void finish_totals(const TileCall<Steps>& call, int64_t tile, int64_t block, const float* totals) {
    for (int b = 0; b < kBlocks; ++b)
        for (int t = 0; t < 2 && tile + t < call.weight.tiles; ++t)
            for (int64_t i = 0; i < call.rows && (block + b) * call.rows + i < call.m; ++i)
                call.outputs.finish((block + b) * call.rows + i, (tile + t) * 16,
                                    load(totals + (2 * b + t) * kSumLanes + i * 16));
}

// Groups of a part: as many as fit the first-level cache when they are expanded.
template <class Steps>
inline int64_t part_groups(const TileCall<Steps>& call) {
    const int64_t groups = (32 << 10) / (2 * call.weight_step_bytes() * call.group_steps);
    return groups < 1 ? 1 : groups;
}

// Tiles [begin, end), no more than a panel, for more rows of x than a pair of blocks has.
template <class Steps>
inline void tile_panel(const TileCall<Steps>& call, int64_t begin, int64_t end, uint8_t* expanded,
                       float* totals) {
    const int64_t each = part_groups(call), groups = call.weight.groups, parts = (groups + each - 1) / each;
    const int64_t pair_bytes = 2 * call.weight_step_bytes();
    const auto part_end = [&](int64_t part) {
        return (part + 1) * each < groups ? (part + 1) * each : groups;
    };
    for_panels(
        call.blocks(), parts, (end - begin + 1) / 2,
        [&](int64_t part, int64_t pair) {
            uint8_t* to = expanded;
            for (int64_t g = part * each; g < part_end(part); ++g)
                for (int64_t s = 0; s < call.steps_of(g); ++s, to += pair_bytes)
                    expand_step(call, begin + 2 * pair, g, s, to);
        },
        [&](auto blocks, int64_t part, int64_t pair, int64_t block, int64_t at) {
            constexpr int kBlocks = decltype(blocks)::value;
            const int64_t tile = begin + 2 * pair;
            float* kept = totals + at * kSumLanes;
            if (part == 0) memset(kept, 0, 2 * kBlocks * kSumLanes * sizeof(float));
            StepsReady weights = {expanded, pair_bytes};
            add_groups<kBlocks>(call, tile, block, part * each, part_end(part), weights, kept);
            if (part + 1 == parts) finish_totals<kBlocks>(call, tile, block, kept);
        });
}

// A pair of tiles for no more rows of x than a pair of blocks has.
template <int kBlocks, class Steps>
inline void tile_pair(const TileCall<Steps>& call, int64_t tile) {
    alignas(64) float totals[2 * kBlocks * kSumLanes] = {};
    StepsAhead<Steps> weights(call, tile);
    add_groups<kBlocks>(call, tile, 0, 0, call.weight.groups, weights, totals);
    finish_totals<kBlocks>(call, tile, 0, totals);
}

// Rows of x as first operands, zeros where a step or a block is not full.
template <class Steps>
inline void arrange_steps(const TileCall<Steps>& call, const typename Steps::Element* x, uint8_t* out,
                          int64_t threads) {
    const auto& w = call.weight;
    const int64_t row_bytes = call.row_bytes(), whole = call.depth * 8;
    const auto arrange_row = [&](int64_t i) {
        uint8_t* to = out + (i / call.rows * call.steps() * call.rows + i % call.rows) * row_bytes;
        for (int64_t g = 0; g < w.groups; ++g) {
            // the last chunks of a row may be padding
            const int64_t end = w.group_end(g) * 8 < w.k ? w.group_end(g) * 8 : w.k;
            int64_t at = g * w.group_chunks * 8;
            for (int64_t s = call.steps_of(g); s > 0; --s, at += whole, to += call.x_step_bytes()) {
                const int64_t left = i < call.m && at < end ? end - at : 0;
                Steps::arrange(x + i * w.k + at, left < whole ? left : whole, call.depth, to);
            }
        }
    };
    parallel_ranges(call.blocks() * call.rows, 65536 / (w.k + 1), threads,
                    [&](int64_t begin, int64_t end, int64_t) {
                        for (int64_t i = begin; i < end; ++i) arrange_row(i);
                    });
}

template <class Steps>
inline int run_tiles(TileCall<Steps>& call, const typename Steps::Element* x, int64_t threads) {
    if (call.m < 1) return kDone;
    Scratch<uint8_t> arranged(call.blocks() * call.steps() * call.x_step_bytes());
    if (!arranged.ok()) return kOutOfMemory;
    arrange_steps(call, x, arranged.get(), threads);
    call.x = arranged.get();
    const auto& w = call.weight;
    if (call.blocks() <= 2) {
        const int64_t tiles = slice_rows(w.tiles, w.tile_bytes(), call.m, threads, 2);
        parallel_ranges(w.tiles, tiles, threads, [&](int64_t begin, int64_t end, int64_t) {
            const TileScope scope(call.config());
            for (int64_t tile = begin; tile < end; tile += 2)
                with_count<2>(call.blocks(),
                              [&](auto blocks) { tile_pair<decltype(blocks)::value>(call, tile); });
        });
        return kDone;
    }
    const int64_t pairs = panel_pairs((w.tiles + 1) / 2, threads), slots = threads < 1 ? 1 : threads;
    const int64_t expanded = part_groups(call) * call.group_steps * 2 * call.weight_step_bytes();
    const int64_t kept = panel_sums(call.blocks(), pairs) * kSumLanes;
    Scratch<uint8_t> weights(slots * expanded);
    Scratch<float> totals(slots * kept);
    if (!weights.ok() || !totals.ok()) return kOutOfMemory;
    parallel_ranges(w.tiles, 2 * pairs, threads, [&](int64_t begin, int64_t end, int64_t slot) {
        const TileScope scope(call.config());
        for (int64_t tile = begin; tile < end; tile += 2 * pairs)
            tile_panel(call, tile, end - tile < 2 * pairs ? end : tile + 2 * pairs,
                       weights.get() + slot * expanded, totals.get() + slot * kept);
    });
    return kDone;
}

// The two linears; arguments as in linear_integer.hpp and linear_float.hpp.
template <class Format>
inline int tile_integer_linear(const int8_t* codes, const float* x_scales, int64_t scale_columns,
                               const PackedMatrix<Format>& weight, const Outputs& outputs, int64_t m,
                               int64_t threads) {
    TileCall<IntegerSteps<Format>> call(weight, x_scales, scale_columns, outputs, m);
    return run_tiles(call, codes, threads);
}

template <class Format>
inline int tile_float_linear(const void* x, const PackedMatrix<Format>& weight, const Outputs& outputs,
                             int64_t m, int64_t threads) {
    int status = kDone;
    with_element(outputs.bf16, [&](auto element) {
        using T = decltype(element);
        TileCall<FloatSteps<Format, T>> call(weight, nullptr, 0, outputs, m);
        status = run_tiles(call, static_cast<const T*>(x), threads);
    });
    return status;
}

}  // namespace qspec

#endif
