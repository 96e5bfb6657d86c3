// BF16 weights times BF16 activations by TDPBF16PS, for every M:
//
//     out[m, n] = sum over k of x[m, k] * w[n, k] (+ bias[n]) (+ residual[m, n])
//
// Weights are first operands, sixteen rows of 32 k a tile, read straight from where torch holds them. x is
// the second operand, arranged once per call: blocks of up to sixteen rows, in steps of 32 k, each step
// sixteen pairs of k times the rows of the block. Every output is the sum over steps from k = 0 upwards, the
// last one filled with zeros, in the instruction's own order inside a step (amx_tiles.hpp).
//
// Tiles of weights come from memory as they are while x fits the second-level cache. Where it does not, and
// for weight rows that fill no tile, parts of 32 weight rows are copied first (for_panels).
#pragma once

#include "amx_tiles.hpp"
#include "bf16_weights.hpp"

#if defined(QSPEC_HAS_TILES)

namespace qspec {

struct TileRowsCall {
    const uint16_t* weight;
    const uint8_t* x;  // [blocks][steps][16 pairs][columns]
    Outputs outputs;
    int64_t m, k, columns;

    int64_t blocks() const { return (m + columns - 1) / columns; }
    int64_t steps() const { return (k + 31) / 32; }
    int64_t step_bytes() const { return 64 * columns; }
    const uint8_t* x_step(int64_t block, int64_t step) const {
        return x + (block * steps() + step) * step_bytes();
    }
    bool streams() const {
        return blocks() <= kStreamBlocks || blocks() * steps() * step_bytes() <= kStreamBytes;
    }
    TileConfig config() const { return {kTileRows, 64, columns}; }
    // One row of x leaves its sums side by side.
    int64_t sum_stride() const { return columns == 1 ? 4 : 64; }
};

// Tiles of weights beside so many blocks of x: their sums fill the registers.
constexpr int tiles_beside_blocks(int64_t blocks) { return blocks > 2 ? 1 : 2; }

// 16 KB of weights: what passes over them wants the first-level cache, too.
inline constexpr int64_t kPartSteps = 8;
inline constexpr int64_t kPartBytes = kPartSteps * 2048;  // two tiles of weights a step

// 32 values of each row of a block as sixteen pairs, the same pair of all rows side by side. A vector holds a
// pair of sixteen rows; what it writes beyond `columns` of them is overwritten by the next pair and the next
// step, and behind the last step of a narrow block, which is the only one, there is room for it.
inline void arrange_step(const uint16_t (&rows)[16][32], int64_t columns, uint8_t* out) {
    f32 pairs[16];
    for (int i = 0; i < 16; ++i) pairs[i] = load(reinterpret_cast<const float*>(rows[i]));
    transpose(pairs);
    for (int i = 0; i < 16; ++i) store(reinterpret_cast<float*>(out + i * 4 * columns), pairs[i]);
}

template <class T>
inline void arrange_block(const TileRowsCall& call, const T* x, int64_t rows, uint8_t* out) {
    uint16_t values[16][32] = {};
    for (int64_t begin = 0; begin < call.k; begin += 32, out += call.step_bytes()) {
        const int64_t count = call.k - begin < 32 ? call.k - begin : 32;
        for (int64_t i = 0; i < rows; ++i) {
            if (count < 32) memset(values[i], 0, sizeof(values[i]));
            Bf16Weights::arrange(x + i * call.k + begin, values[i], count);
        }
        if (call.columns == 1) {
            memcpy(out, values[0], 64);  // the pairs of a single row lie as they should
        } else {
            arrange_step(values, call.columns, out);
        }
    }
}

inline void arrange_blocks(const TileRowsCall& call, const void* x, uint8_t* out, int64_t threads) {
    parallel_ranges(call.blocks(), 4096 / (call.k + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        with_element(call.outputs.bf16, [&](auto element) {
            using T = decltype(element);
            for (int64_t block = begin; block < end; ++block) {
                const int64_t first = block * call.columns, left = call.m - first;
                arrange_block(call, static_cast<const T*>(x) + first * call.k,
                              left < call.columns ? left : call.columns,
                              out + block * call.steps() * call.step_bytes());
            }
        });
    });
}

// Part of 32 weight rows, two tiles a step; `row_of(i)` is null where there is no row.
template <class RowOf>
inline void copy_rows(const RowOf& row_of, int64_t k, int64_t step, int64_t count, uint8_t* out) {
    for (int64_t i = 0; i < 2 * kTileRows; ++i) {
        const uint16_t* row = row_of(i);
        uint8_t* to = out + i * 64;  // row i % 16 of tile i / 16
        for (int64_t s = 0; s < count; ++s, to += 2048) {
            const int64_t begin = (step + s) * 32;
            if (row && k - begin >= 32) {
                store_bits(to, load_bits(row + begin));
                continue;
            }
            memset(to, 0, 64);
            if (row) memcpy(to, row + begin, 2 * (k - begin));
        }
    }
}

// kBlocks blocks of x times kTiles tiles of weight rows in memory.
template <int kTiles, int kBlocks>
inline void sum_stream(const TileRowsCall& call, int64_t n, int64_t block) {
    const auto* rows = reinterpret_cast<const uint8_t*>(call.weight + n * call.k);
    const int64_t stride = 2 * call.k, half = kTileRows * stride, whole = call.k / 32;
    const int64_t x_bytes = call.step_bytes(), x_stride = 4 * call.columns;
    const int64_t block_bytes = call.steps() * x_bytes;
    const uint8_t* x = call.x_step(block, 0);
    const auto multiply = [&](const uint8_t* first, const uint8_t* other_first, int64_t first_stride) {
        if constexpr (kBlocks > 2) {
            multiply_by_many<Bf16Tiles, kBlocks>(first, first_stride, x, block_bytes);
        } else {
            multiply_tiles<Bf16Tiles, kTiles, kBlocks>(first, other_first, first_stride, x, x + block_bytes,
                                                       x_stride);
        }
        x += x_bytes;
    };
    zero_sums();
    // no prefetch: the core's own runs far enough ahead in these rows, and one by hand was in its way
    for (int64_t step = 0; step < whole; ++step) multiply(rows + step * 64, rows + half + step * 64, stride);
    if (call.k % 32) {
        alignas(64) uint8_t last[2048];
        const auto row_of = [&](int64_t i) {
            return i < kTiles * kTileRows ? call.weight + (n + i) * call.k : nullptr;
        };
        copy_rows(row_of, call.k, whole, 1, last);
        multiply(last, last + 1024, 64);
    }
}

// finish(m, i, value): sixteen sums of row m, from weight row i of the caller's numbering.
template <int kTiles, int kBlocks, class Finish>
inline void finish_sums(const TileRowsCall& call, const float* sums, int64_t i, int64_t block, int64_t end,
                        const Finish& finish) {
    for (int tile = 0; tile < kTiles && i + tile * kTileRows < end; ++tile)
        for (int b = 0; b < kBlocks; ++b) {
            const float* from = sums + (2 * tile + b) * kSumLanes;
            const int64_t m = (block + b) * call.columns;
            f32 lanes[16];
            if (call.columns == 1) {
                lanes[0] = load(from);
            } else {
                for (int r = 0; r < 16; ++r) lanes[r] = load(from + r * 16);
                transpose(lanes);
            }
            for (int64_t c = 0; c < call.columns && m + c < call.m; ++c)
                finish(m + c, i + tile * kTileRows, lanes[c]);
        }
}

// Any `count` weight rows, row_of(i) each, times all of x; `parts` has kPartBytes, `kept` panel_sums() sums.
template <class RowOf, class Finish>
inline void copied_rows(const TileRowsCall& call, int64_t count, const RowOf& row_of, uint8_t* parts,
                        float* kept, const Finish& finish) {
    const int64_t steps = call.steps(), part_count = (steps + kPartSteps - 1) / kPartSteps;
    const int64_t stride = call.sum_stride();
    const int64_t pairs = (count + 31) / 32;
    const auto part_steps = [&](int64_t part) {
        const int64_t left = steps - part * kPartSteps;
        return left < kPartSteps ? left : kPartSteps;
    };
    const auto row_in = [&](int64_t i) { return i < count ? row_of(i) : nullptr; };
    // The lines to be copied next are asked for while those copied are multiplied, a few at each step: all at
    // once they would wait for each other, and the tiles for them.
    constexpr int64_t lines = 2 * kTileRows * kPartSteps;
    const int64_t passes = call.blocks() < kPanelBlocks ? (call.blocks() + 1) / 2 : kPanelBlocks / 2;
    const int64_t some_lines = (2 * kTileRows + passes - 1) / passes;
    int64_t line = lines, next_part = 0, next_pair = 0;
    const auto prefetch_some = [&] {
        const int64_t end = line + some_lines < lines ? line + some_lines : lines;
        for (; line < end; ++line) {
            const uint16_t* row = row_in(next_pair * 32 + line / kPartSteps);
            const int64_t at = (next_part * kPartSteps + line % kPartSteps) * 32;
            if (row && at < call.k) __builtin_prefetch(row + at, 0, 2);
        }
    };
    for_panels(
        call.blocks(), part_count, pairs,
        [&](int64_t part, int64_t pair) {
            const auto row = [&](int64_t i) { return row_in(pair * 32 + i); };
            copy_rows(row, call.k, part * kPartSteps, part_steps(part), parts);
            line = 0;
            next_part = pair + 1 < pairs ? part : part + 1;
            next_pair = pair + 1 < pairs ? pair + 1 : 0;
        },
        [&](auto blocks, int64_t part, int64_t pair, int64_t block, int64_t at) {
            constexpr int kBlocks = decltype(blocks)::value;
            const int64_t x_bytes = call.step_bytes(), x_stride = 4 * call.columns;
            const uint8_t* x = call.x_step(block, part * kPartSteps);
            const uint8_t* other_x = call.x_step(block + 1, part * kPartSteps);
            float* sums = kept + at * kSumLanes;
            if (part) {
                load_sums<2, kBlocks>(sums, stride);
            } else {
                zero_sums();
            }
            const uint8_t *weights = parts, *end = parts + part_steps(part) * 2048;
            for (; weights < end; weights += 2048, x += x_bytes, other_x += x_bytes) {
                prefetch_some();
                multiply_tiles<Bf16Tiles, 2, kBlocks>(weights, weights + 1024, 64, x, other_x, x_stride);
            }
            store_sums<2, kBlocks>(sums, stride);
            if (part + 1 == part_count) finish_sums<2, kBlocks>(call, sums, pair * 32, block, count, finish);
        });
}

// Scratch memory of a thread that calls copied_rows: parts, then sums, in floats.
inline int64_t copied_scratch(const TileRowsCall& call, int64_t pairs) {
    return kPartBytes / 4 + panel_sums(call.blocks(), pairs) * kSumLanes;
}

inline void linear_slice(const TileRowsCall& call, int64_t begin, int64_t end, int64_t panel,
                         float* scratch) {
    const TileScope scope(call.config());
    const int64_t blocks = call.blocks(),
                  streamed = call.streams() ? tiles_beside_blocks(blocks) * kTileRows : 0;
    for (int64_t n = begin; n < end; n += panel) {
        const int64_t count = end - n < panel ? end - n : panel;
        if (count == streamed) {
            alignas(64) float sums[kStreamBlocks * kSumLanes];
            const auto stream = [&](auto tiles, auto some, int64_t block) {
                constexpr int kTiles = decltype(tiles)::value, kBlocks = decltype(some)::value;
                sum_stream<kTiles, kBlocks>(call, n, block);
                store_sums<2, kBlocks == 1 ? 1 : 2>(sums, call.sum_stride());
                finish_sums<kTiles, kBlocks>(call, sums, n, block, end, [&](int64_t m, int64_t i, f32 value) {
                    call.outputs.finish(m, i, value);
                });
            };
            if (blocks <= 2) {
                with_count<2>(blocks, [&](auto some) { stream(Count<2>{}, some, 0); });
            } else {
                for (int64_t block = 0; block < blocks; block += kStreamBlocks)
                    with_count<kStreamBlocks>(blocks - block,
                                              [&](auto some) { stream(Count<1>{}, some, block); });
            }
        } else {
            copied_rows(
                call, count, [&](int64_t i) { return call.weight + (n + i) * call.k; },
                reinterpret_cast<uint8_t*>(scratch), scratch + kPartBytes / 4,
                [&](int64_t m, int64_t i, f32 value) { call.outputs.finish(m, n + i, value); });
        }
    }
}

inline int tile_linear_bf16(const void* x, const uint16_t* weight, const Outputs& outputs, int64_t m,
                            int64_t k, int64_t threads) {
    if (m < 1) return kDone;
    TileRowsCall call = {weight, nullptr, outputs, m, k, m < kTileRows ? m : kTileRows};
    Scratch<uint8_t> arranged(call.blocks() * call.steps() * 64 * kTileRows);
    if (!arranged.ok()) return kOutOfMemory;
    arrange_blocks(call, x, arranged.get(), threads);
    call.x = arranged.get();
    const bool streams = call.streams();
    const int64_t tiles =
        streams ? tiles_beside_blocks(call.blocks()) : 2 * panel_pairs((outputs.n + 31) / 32, threads);
    const int64_t panel = tiles * kTileRows;
    const int64_t grain = streams ? slice_rows(outputs.n, 2 * k, m, threads, panel) : panel;
    const int64_t slots = threads < 1 ? 1 : threads, each = copied_scratch(call, (tiles + 1) / 2);
    Scratch<float> scratch(slots * each);
    if (!scratch.ok()) return kOutOfMemory;
    parallel_ranges(outputs.n, grain, threads, [&](int64_t begin, int64_t end, int64_t slot) {
        linear_slice(call, begin, end, panel, scratch.get() + slot * each);
    });
    return kDone;
}

// What tile_linear_bf16 would give, without a bias, for some weight rows and one row of x, which is BF16
// filled with zeros to whole steps: finish(indices[i], sum) for each.
template <class Finish>
inline void tile_chosen_rows(const uint16_t* weight, const uint16_t* x, int64_t k, const int64_t* indices,
                             int64_t count, const Finish& finish) {
    alignas(64) uint8_t parts[kPartBytes];
    alignas(64) float kept[4 * kSumLanes];
    const TileRowsCall call = {weight, reinterpret_cast<const uint8_t*>(x), {}, 1, k, 1};
    const TileScope scope(call.config());
    for (; count > 0; count -= 32, indices += 32) {
        const int64_t some = count < 32 ? count : 32;
        const auto row_of = [&](int64_t i) { return weight + indices[i] * k; };
        copied_rows(call, some, row_of, parts, kept, [&](int64_t, int64_t i, f32 sums) {
            float lanes[kLanes];
            store(lanes, sums);
            for (int64_t j = 0; j < kLanes && i + j < some; ++j) finish(indices[i + j], lanes[j]);
        });
    }
}

}  // namespace qspec

#endif
