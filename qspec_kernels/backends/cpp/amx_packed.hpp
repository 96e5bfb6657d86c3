// 4-bit weights by the tile registers of AMX: what linear_integer.hpp and linear_float.hpp compute.
//
// Rows of x are first operands, up to sixteen a block, and sixteen output features a second one: a slice of a
// chunk, expanded to bytes or BF16 values, is already the 32 bits of K of sixteen features that a row of it
// holds. A step covers up to 64 bytes of K of one scale group; the last step of a group is filled with zeros.
// Sums of a group leave the registers, are scaled and added, group after group; those of MXFP4 and BF16 stay,
// for there a scale is part of the value (FoldedSteps).
//
// Integer sums are exact, so there the bits are those of any other path, and a few rows of x are left to
// VNNI. Float sums follow the steps from the group's first, in the instruction's own order inside a step, and
// that for every M: one row costs the look-up that VDPBF16PS needs as well, a store and a load next to the
// core, and a product, which takes as long for sixteen rows.
//
// Up to four blocks of x pass over the weights together: a step is expanded while the one before it is
// multiplied, so that the tile loads find their bytes in the first-level cache and not in the store buffer.
// Some blocks more follow four by four, and expand anew: that costs less than sums that wait in memory. For
// many, parts of two tiles of features are expanded once for all blocks of x (for_panels).
#pragma once

#include "amx_steps.hpp"

#if defined(QSPEC_HAS_TILES)

namespace qspec {

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
    int64_t group_steps;         // steps in a group
    int64_t last_group_steps;    // steps in the last one
    const uint8_t* x = nullptr;  // [blocks][steps][rows][depth * kChunkBytes]
    uint8_t* odd = nullptr;      // [tiles]: 1 where scales were found that do not fold; null: nothing folds
    bool odd_ones = false;       // whether those are the tiles that the call is about, or the others

    TileCall(const PackedMatrix<Format>& weight, const float* x_scales, int64_t scale_columns,
             const Outputs& outputs, int64_t m)
        : weight(weight), x_scales(x_scales), scale_columns(scale_columns), outputs(outputs), m(m) {
        const int64_t longest = weight.group_chunks < weight.chunks ? weight.group_chunks : weight.chunks;
        const int64_t most = 64 / Steps::kChunkBytes;
        rows = m < kTileRows ? m : kTileRows;
        depth = longest < most ? longest : most;
        group_steps = (longest + depth - 1) / depth;
        const int64_t last = weight.chunks - (weight.groups - 1) * weight.group_chunks;
        last_group_steps = (last + depth - 1) / depth;
    }
    int64_t blocks() const { return (m + rows - 1) / rows; }
    bool wanted(int64_t tile) const {
        return tile < weight.tiles && (odd == nullptr || (odd[tile] != 0) == odd_ones);
    }
    bool streams() const {
        constexpr int64_t most = 16;  // blocks for which expanding anew was measured to be faster
        return odd_ones || blocks() <= kStreamBlocks ||
               (blocks() <= most && kStreamBlocks * steps() * x_step_bytes() <= kStreamBytes);
    }
    int64_t first_step(int64_t g) const { return g * group_steps; }
    int64_t steps_of(int64_t g) const { return g + 1 < weight.groups ? group_steps : last_group_steps; }
    int64_t steps() const { return first_step(weight.groups - 1) + steps_of(weight.groups - 1); }
    int64_t row_bytes() const { return depth * Steps::kChunkBytes; }
    int64_t x_step_bytes() const { return rows * row_bytes(); }
    const uint8_t* x_step(int64_t block, int64_t step) const {
        return x + (block * steps() + step) * x_step_bytes();
    }
    int64_t weight_step_bytes() const { return row_bytes() * 16; }  // of one tile
    TileConfig config() const { return {rows, row_bytes(), kTileRows}; }
    // One of the tiles side by side; where there are fewer, the last is computed again and stored once.
    int64_t beside(int64_t tile, int64_t t) const {
        return tile + t < weight.tiles ? tile + t : weight.tiles - 1;
    }
};

// kChunks chunks one behind the other; `next` are those to prefetch.
template <int kChunks, class Steps>
inline void expand_chunks(const Steps& kind, const uint8_t* chunks, const uint8_t* next, uint8_t* out) {
#pragma GCC unroll 8
    for (int c = 0; c < kChunks; ++c) {
        __builtin_prefetch(next + c * 64);
        kind.expand(chunks + c * 64, out + c * 16 * Steps::kChunkBytes);
    }
}

// Where the steps of a row begin, from a group's first step on, and how many chunks each has.
class StepCursor {
   public:
    template <class Steps>
    StepCursor(const TileCall<Steps>& call, int64_t group)
        : at_(group * call.weight.group_chunks),
          end_(call.weight.group_end(group)),
          chunks_(call.weight.chunks),
          group_chunks_(call.weight.group_chunks),
          depth_(call.depth) {}
    bool done() const { return at_ == chunks_; }
    int64_t at() const { return at_; }
    int64_t count() const { return end_ - at_ < depth_ ? end_ - at_ : depth_; }
    void advance() {
        at_ += count();
        if (at_ == end_) end_ = chunks_ - end_ < group_chunks_ ? chunks_ : end_ + group_chunks_;
    }

   private:
    int64_t at_, end_;
    const int64_t chunks_, group_chunks_, depth_;
};

// What is expanded of kTiles tiles side by side.
template <int kTiles, class Steps>
struct TilesBeside {
    const uint8_t* data[kTiles];
    const typename Steps::Format::Scale* scales[kTiles];
    uint8_t* odd[kTiles];

    TilesBeside(const TileCall<Steps>& call, int64_t tile) {
        for (int t = 0; t < kTiles; ++t) {
            const int64_t at = call.beside(tile, t);
            data[t] = call.weight.tile(at);
            scales[t] = call.weight.tile_scales(at);
            odd[t] = call.odd ? call.odd + at : nullptr;
        }
    }
};

// A step of kTiles tiles side by side.
template <int kTiles, class Steps>
inline void expand_step(const Steps& kind, const PackedMatrix<typename Steps::Format>& weight,
                        const TilesBeside<kTiles, Steps>& tiles, const StepCursor& step, int64_t tile_bytes,
                        uint8_t* out) {
    constexpr int64_t chunk_bytes = 16 * Steps::kChunkBytes;
    const int64_t count = step.count(), next = (ahead(step.at(), weight.chunks, kTiles) - step.at()) * 64;
    for (int t = 0; t < kTiles; ++t, out += tile_bytes) {
        const uint8_t* from = tiles.data[t] + step.at() * 64;
        if constexpr (Steps::kFolded) {
            const int64_t g = step.at() / Steps::Format::kGroupChunks;
            prefetch_scales(weight, tiles.scales[t], 0, g, kTiles);
            if (!kind.expand_group(from, tiles.scales[t] + g * 16, from + next, out)) *tiles.odd[t] = 1;
            continue;
        }
        // as deep as a step can be, or as long as a group of 32
        if (count == 1024 / chunk_bytes) {
            expand_chunks<1024 / chunk_bytes>(kind, from, from + next, out);
        } else if (count == 4) {
            expand_chunks<4>(kind, from, from + next, out);
        } else {
            for (int64_t c = 0; c < count; ++c)
                expand_chunks<1>(kind, from + c * 64, from + next + c * 64, out + c * chunk_bytes);
        }
        const int64_t filled = count * chunk_bytes;
        if (filled < tile_bytes) memset(out + filled, 0, tile_bytes - filled);
    }
}

// Steps expanded as they are asked for, one ahead, in two places that take turns; a place has kTiles tiles.
template <int kTiles, class Steps>
class StepsAhead {
   public:
    StepsAhead(const TileCall<Steps>& call, int64_t tile, uint8_t* places)
        : kind_(call.kind),
          weight_(call.weight),
          tiles_(call, tile),
          tile_bytes_(call.weight_step_bytes()),
          step_(call, 0),
          now_(places + kTiles * 1024),
          then_(places) {
        next();
    }
    const uint8_t* next() {
        uint8_t* expanded = then_;
        then_ = now_;
        now_ = expanded;
        if (!step_.done()) {
            expand_step<kTiles>(kind_, weight_, tiles_, step_, tile_bytes_, then_);
            step_.advance();
        }
        return now_;
    }

   private:
    const Steps kind_;
    const PackedMatrix<typename Steps::Format> weight_;
    const TilesBeside<kTiles, Steps> tiles_;
    const int64_t tile_bytes_;
    StepCursor step_;
    uint8_t *now_, *then_;
};

// Steps that stand one behind the other.
struct StepsReady {
    const uint8_t* at;
    int64_t bytes;
    const uint8_t* next() { return (at += bytes) - bytes; }
};

// Sums of `groups` groups from `first` on, scaled and added in their order to totals
// [kBlocks][kTiles][rows of 16].
template <int kBatch, int kBlocks, int kTiles, class Steps>
inline void add_scaled(const TileCall<Steps>& call, int64_t tile, int64_t block, int64_t first,
                       int64_t groups, const int32_t* sums, float* totals) {
    const auto& w = call.weight;
    const int64_t scale_step = call.scale_columns > 1;
    f32 scales[kTiles][kBatch];
    for (int t = 0; t < kTiles; ++t) {
        const auto* from = w.tile_scales(call.beside(tile, t)) + first * 16;
        const uint8_t* chunks = w.tile(call.beside(tile, t)) + first * w.group_chunks * 64;
        prefetch_scales(w, from, 0, 0, kTiles);
        for (int64_t g = 0; g < groups; ++g)
            scales[t][g] = Steps::weight_scale(from + g * 16, chunks + g * w.group_chunks * 64);
    }
    with_count<kBatch>(groups, [&](auto count) {
        for (int b = 0; b < kBlocks; ++b) {
            const int64_t m = (block + b) * call.rows, left = call.m - m;
            const int64_t rows = left < call.rows ? left : call.rows;
            for (int t = 0; t < kTiles; ++t) {
                const int32_t* from = sums + (kTiles * b + t) * kSumLanes;
                float* to = totals + (kTiles * b + t) * kSumLanes;
                for (int64_t i = 0; i < rows; ++i, from += 16, to += 16) {
                    const float* x_scales = call.x_scales;
                    if (x_scales) x_scales += (m + i) * call.scale_columns + first * scale_step;
                    f32 total = load(to);
#pragma GCC unroll 8
                    for (int g = 0; g < decltype(count)::value; ++g)
                        total =
                            add(total, Steps::scaled(from + g * kBlocks * kTiles * kSumLanes, scales[t][g],
                                                     x_scales ? x_scales[g * scale_step] : 1));
                    store(to, total);
                }
            }
        }
    });
}

// One step of kBlocks blocks of x times kTiles tiles.
template <class Steps, int kBlocks, int kTiles>
inline void multiply_step(const TileCall<Steps>& call, const uint8_t* x, const uint8_t* weights) {
    const int64_t block_bytes = call.steps() * call.x_step_bytes(), row_bytes = call.row_bytes();
    const int64_t tile_bytes = call.weight_step_bytes();
    if constexpr (kBlocks > 2) {
        multiply_many_by<typename Steps::Tiles, kBlocks>(x, block_bytes, row_bytes, weights);
    } else if constexpr (kTiles == 4) {
        multiply_by_many<typename Steps::Tiles, 4>(x, row_bytes, weights, tile_bytes);
    } else {
        multiply_tiles<typename Steps::Tiles, kBlocks, 2>(x, x + block_bytes, row_bytes, weights,
                                                          weights + tile_bytes, 64);
    }
}

// Groups [begin, end) of kBlocks blocks of x times kTiles tiles. All four registers of sums are stored where
// three are used, so the last group has room for four.
template <int kBatch, int kBlocks, int kTiles, class Steps, class Weights>
inline void add_batches(const TileCall<Steps>& call, int64_t tile, int64_t block, int64_t begin, int64_t end,
                        Weights& weights, float* totals) {
    const int64_t step_bytes = call.x_step_bytes();
    const uint8_t* x = call.x_step(block, call.first_step(begin));
    alignas(64) int32_t sums[((kBatch - 1) * kTiles * kBlocks + 4) * kSumLanes];
    for (int64_t first = begin; first < end; first += kBatch) {
        const int64_t groups = end - first < kBatch ? end - first : kBatch;
        for (int64_t g = 0; g < groups; ++g) {
            zero_sums();
            for (int64_t s = call.steps_of(first + g); s > 0; --s, x += step_bytes)
                multiply_step<Steps, kBlocks, kTiles>(call, x, weights.next());
            store_sums<kTiles * kBlocks == 2 ? 1 : 2, 2>(sums + g * kTiles * kBlocks * kSumLanes, 64);
        }
        add_scaled<kBatch, kBlocks, kTiles>(call, tile, block, first, groups, sums, totals);
    }
}

// The same where scales are in the weights: sums go on in the registers, from group to group.
template <int kBlocks, int kTiles, class Steps, class Weights>
inline void add_folded(const TileCall<Steps>& call, int64_t block, int64_t begin, int64_t end,
                       Weights& weights, float* totals) {
    constexpr int kFirst = kTiles * kBlocks == 2 ? 1 : 2;
    const int64_t step_bytes = call.x_step_bytes();
    const uint8_t* x = call.x_step(block, begin);
    if (begin == 0) {
        zero_sums();
    } else {
        load_sums<kFirst, 2>(totals, 64);
    }
    for (int64_t g = begin; g < end; ++g, x += step_bytes)
        multiply_step<Steps, kBlocks, kTiles>(call, x, weights.next());
    store_sums<kFirst, 2>(totals, 64);
}

// Sums of short groups are kept until there are four and then scaled together: a sum just stored is slow to
// load, and a total is loaded and stored once for all of them.
template <int kBlocks, int kTiles, class Steps, class Weights>
inline void add_groups(const TileCall<Steps>& call, int64_t tile, int64_t block, int64_t begin, int64_t end,
                       Weights& weights, float* totals) {
    if constexpr (Steps::kFolded) {
        add_folded<kBlocks, kTiles>(call, block, begin, end, weights, totals);
    } else if (call.group_steps > 1) {
        add_batches<1, kBlocks, kTiles>(call, tile, block, begin, end, weights, totals);
    } else {
        add_batches<4, kBlocks, kTiles>(call, tile, block, begin, end, weights, totals);
    }
}

template <int kBlocks, int kTiles, class Steps>
inline void finish_totals(const TileCall<Steps>& call, int64_t tile, int64_t block, const float* totals) {
    for (int b = 0; b < kBlocks; ++b)
        for (int t = 0; t < kTiles; ++t) {
            if (!call.wanted(tile + t)) continue;
            for (int64_t i = 0; i < call.rows && (block + b) * call.rows + i < call.m; ++i)
                call.outputs.finish((block + b) * call.rows + i, (tile + t) * 16,
                                    load(totals + (kTiles * b + t) * kSumLanes + i * 16));
        }
}

// Groups of a part: 8 KB of them when they are expanded, for x and the sums want the first-level cache, too.
template <class Steps>
inline int64_t part_groups(const TileCall<Steps>& call) {
    const int64_t groups = (8 << 10) / (2 * call.weight_step_bytes() * call.group_steps);
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
            const TilesBeside<2, Steps> tiles(call, begin + 2 * pair);
            const int64_t stop = call.weight.group_end(part_end(part) - 1);
            uint8_t* to = expanded;
            for (StepCursor step(call, part * each); step.at() < stop; step.advance(), to += pair_bytes)
                expand_step<2>(call.kind, call.weight, tiles, step, pair_bytes / 2, to);
        },
        [&](auto blocks, int64_t part, int64_t pair, int64_t block, int64_t at) {
            constexpr int kBlocks = decltype(blocks)::value;
            const int64_t tile = begin + 2 * pair;
            float* kept = totals + at * kSumLanes;
            if (part == 0) memset(kept, 0, 2 * kBlocks * kSumLanes * sizeof(float));
            StepsReady weights = {expanded, pair_bytes};
            add_groups<kBlocks, 2>(call, tile, block, part * each, part_end(part), weights, kept);
            if (part + 1 == parts) finish_totals<kBlocks, 2>(call, tile, block, kept);
        });
}

template <class Steps>
inline bool any_wanted(const TileCall<Steps>& call, int64_t tile, int64_t count) {
    bool any = false;
    for (int64_t t = tile; t < tile + count; ++t) any = any || call.wanted(t);
    return any;
}

// Tiles [begin, end) for up to four blocks of x from `block` on: the sums of one block times four tiles, of
// two times two, or of three or four times one fill the registers.
template <int kBlocks, class Steps>
inline void tile_stream(const TileCall<Steps>& call, int64_t begin, int64_t end, int64_t block) {
    constexpr int kTiles = 4 / kBlocks;
    for (int64_t tile = begin; tile < end; tile += kTiles) {
        if (!any_wanted(call, tile, kTiles)) continue;
        alignas(64) uint8_t places[2 * kTiles * 1024];
        alignas(64) float totals[4 * kSumLanes] = {};
        StepsAhead<kTiles, Steps> weights(call, tile, places);
        add_groups<kBlocks, kTiles>(call, tile, block, 0, call.weight.groups, weights, totals);
        finish_totals<kBlocks, kTiles>(call, tile, block, totals);
    }
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
    if (call.streams()) {
        const int64_t tiles = slice_rows(w.tiles, w.tile_bytes(), call.m, threads, 4);
        parallel_ranges(w.tiles, tiles, threads, [&](int64_t begin, int64_t end, int64_t) {
            const TileScope scope(call.config());
            for (int64_t block = 0; block < call.blocks(); block += kStreamBlocks)
                with_count<kStreamBlocks>(call.blocks() - block, [&](auto blocks) {
                    tile_stream<decltype(blocks)::value>(call, begin, end, block);
                });
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

// Tiles whose scales do not fold are found on the way and make a call of their own.
template <class T>
inline int folded_linear(const T* x, const PackedMatrix<Mxfp4>& weight, const Outputs& outputs, int64_t m,
                         int64_t threads) {
    Scratch<uint8_t> odd(weight.tiles);
    if (!odd.ok()) return kOutOfMemory;
    memset(odd.get(), 0, weight.tiles);
    TileCall<FoldedSteps<T>> folded(weight, nullptr, 0, outputs, m);
    folded.odd = odd.get();
    const int status = run_tiles(folded, x, threads);
    if (status != kDone || !memchr(odd.get(), 1, weight.tiles)) return status;
    TileCall<FloatSteps<Mxfp4, T>> rest(weight, nullptr, 0, outputs, m);
    rest.odd = odd.get();
    rest.odd_ones = true;
    return run_tiles(rest, x, threads);
}

template <class Format>
inline int tile_float_linear(const void* x, const PackedMatrix<Format>& weight, const Outputs& outputs,
                             int64_t m, int64_t threads) {
    int status = kDone;
    with_element(outputs.bf16, [&](auto element) {
        using T = decltype(element);
        const T* rows = static_cast<const T*>(x);
        if constexpr (Format::kFolds) {
            status = folded_linear(rows, weight, outputs, m, threads);
        } else {
            TileCall<FloatSteps<Format, T>> call(weight, nullptr, 0, outputs, m);
            status = run_tiles(call, rows, threads);
        }
    });
    return status;
}

}  // namespace qspec

#endif
