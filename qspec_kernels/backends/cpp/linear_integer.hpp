// Linears of 4-bit weights and int8 activation codes, exact in integers inside a scale group.
//
//     t_g       = float(sum over k in g of wcode[n, k] * xcode[m, k]) * (wscale[n, g] * xscale[m, g])
//     out[m, n] = ((t_0 + t_1) + t_2) + ... (+ bias[n]), then (+ residual[m, n]);
//     each step rounded, nothing fused,
//
// so every instruction set and the torch path give the same bits. Weight bytes are unsigned (code + offset);
// the sum starts at -offset * (sum of the row's codes in the group), which takes the offset out again.
//
// A task covers some tiles of sixteen output features and all rows of x. Bytes of a call: N*K/2 codes and
// N*K/group scales.
#pragma once

#include "amx_packed.hpp"
#include "packed.hpp"
#include "pool.hpp"
#include "tiles.hpp"

namespace qspec {

template <class Format>
struct IntegerCall {
    PackedMatrix<Format> weight;
    const int8_t* x;        // [m, chunks * 8], zero-padded
    const float* x_scales;  // [m, scale_columns]
    const int32_t* start;   // [m, groups]: -offset * sum of codes
    const float* bias;
    const float* residual;
    float* out;
    int64_t m, scale_columns;
};

// kChunks chunks of kTiles tiles times kColumns rows of x. All of it is unrolled: a loop around so many sums
// makes the compiler move them through memory.
template <class Format, int kTiles, int kColumns, int kChunks>
inline void add_chunks(i32 (&sum)[kTiles][kColumns], const PackedMatrix<Format>& w, const uint8_t* data,
                       const int8_t* x, int64_t chunk) {
    const uint8_t* next = data + ahead(chunk, w.chunks, kTiles) * 64;
#pragma GCC unroll 16
    for (int i = 0; i < kChunks; ++i) {
        Bytes8 codes[kTiles];
#pragma GCC unroll 16
        for (int t = 0; t < kTiles; ++t) {
            __builtin_prefetch(next + (t * w.chunks + i) * 64);
            codes[t] = Format::unsigned_codes(load_bits(data + (t * w.chunks + chunk + i) * 64));
        }
#pragma GCC unroll 16
        for (int c = 0; c < kColumns; ++c) {
            const Codes8 xv = broadcast_codes(x + c * w.chunks * 8 + (chunk + i) * 8);
#pragma GCC unroll 16
            for (int t = 0; t < kTiles; ++t) sum[t][c] = dot8(sum[t][c], codes[t], xv);
        }
    }
}

template <class Format, int kTiles, int kColumns>
inline void integer_tile(const IntegerCall<Format>& call, int64_t tile, int64_t m) {
    const auto& w = call.weight;
    const uint8_t* data = w.tile(tile);
    const auto* scales = w.tile_scales(tile);
    const int8_t* x = call.x + m * w.chunks * 8;
    const int64_t scale_step = call.scale_columns > 1;
    f32 total[kTiles][kColumns];
    for (int t = 0; t < kTiles; ++t)
        for (int c = 0; c < kColumns; ++c) total[t][c] = zero();

    int64_t chunk = 0;
    for (int64_t g = 0; g < w.groups; ++g) {
        i32 sum[kTiles][kColumns];
#pragma GCC unroll 16
        for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 16
            for (int t = 0; t < kTiles; ++t) sum[t][c] = set1(call.start[(m + c) * w.groups + g]);
        if constexpr (Format::kGroupChunks > 0) {
            add_chunks<Format, kTiles, kColumns, Format::kGroupChunks>(sum, w, data, x, chunk);
            chunk += Format::kGroupChunks;
        } else {
            const int64_t end = w.group_end(g);
            for (; chunk + 4 <= end; chunk += 4)
                add_chunks<Format, kTiles, kColumns, 4>(sum, w, data, x, chunk);
            for (; chunk < end; ++chunk) add_chunks<Format, kTiles, kColumns, 1>(sum, w, data, x, chunk);
        }
#pragma GCC unroll 16
        for (int t = 0; t < kTiles; ++t) {
            prefetch_scales(w, scales, t, g, kTiles);
            const f32 ws = Format::integer_scale(scales + (t * w.groups + g) * 16,
                                                 data + (t * w.chunks + g * w.group_chunks) * 64);
#pragma GCC unroll 16
            for (int c = 0; c < kColumns; ++c) {
                const f32 s = mul(ws, set1(call.x_scales[(m + c) * call.scale_columns + g * scale_step]));
                total[t][c] = add(total[t][c], mul(to_float(sum[t][c]), s));
            }
        }
    }
    for (int t = 0; t < kTiles; ++t) {
        const int64_t n = (tile + t) * 16;
        const int lanes = w.n - n < 16 ? static_cast<int>(w.n - n) : 16;
        for (int c = 0; c < kColumns; ++c) {
            f32 value = total[t][c];
            if (call.bias) value = add(value, load_lanes(call.bias + n, lanes));
            const int64_t at = (m + c) * w.n + n;
            if (call.residual) value = add(load_lanes(call.residual + at, lanes), value);
            store_lanes(call.out + at, value, lanes);
        }
    }
}

template <class Format>
inline void integer_tiles(const IntegerCall<Format>& call, int64_t begin, int64_t end) {
    constexpr int most = kTileColumns;
    for (int64_t m = 0; m < call.m;) {
        const int64_t take = call.m - m < most ? call.m - m : most;
        with_count<most>(take, [&](auto count) {
            constexpr int columns = decltype(count)::value;
            constexpr int tiles = tiles_beside(kIntegerAccumulators / columns);
            int64_t t = begin;
            for (; t + tiles <= end; t += tiles) integer_tile<Format, tiles, columns>(call, t, m);
            for (; t < end; ++t) integer_tile<Format, 1, columns>(call, t, m);
        });
        m += take;
    }
}

// codes [m, k], x_scales [m, scale_columns] with one column per group, or a single one for the whole row.
template <class Format>
inline int integer_linear(float* out, const int8_t* codes, const float* x_scales, int64_t scale_columns,
                          const void* data, const void* scales, const float* bias, const float* residual,
                          int64_t m, int64_t n, int64_t k, int64_t group_size, int64_t threads) {
    const PackedMatrix<Format> weight(data, scales, n, k, group_size);
#if defined(QSPEC_HAS_TILES)
    // the same bits; for a few rows, more where scale groups are short, VNNI is faster: it expands nothing
    if (m > (weight.group_chunks > 4 ? 5 : kTileColumns))
        return tile_integer_linear(codes, x_scales, scale_columns, weight, {out, bias, residual, false, n}, m,
                                   threads);
#endif
    const int64_t row = weight.chunks * 8;
    Scratch<int32_t> start(m * weight.groups);
    Scratch<int8_t> padded(row == k ? 0 : m * row);
    if (!start.ok() || !padded.ok()) return kOutOfMemory;
    const int8_t* x = row == k ? codes : padded.get();
    parallel_ranges(m, 65536 / (row + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; ++i) {
            if (row != k) {
                memset(padded.get() + i * row, 0, row);
                memcpy(padded.get() + i * row, codes + i * k, k);
            }
            for (int64_t g = 0; g < weight.groups; ++g) {
                int32_t sum = 0;
                const int64_t last = weight.group_end(g) * 8;
                for (int64_t j = g * weight.group_chunks * 8; j < last; ++j) sum += x[i * row + j];
                start.get()[i * weight.groups + g] = -Format::kOffset * sum;
            }
        }
    });
    const IntegerCall<Format> call = {weight,   x,   x_scales, start.get(),  bias,
                                      residual, out, m,        scale_columns};
    const int64_t tiles = slice_rows(weight.tiles, weight.tile_bytes(), m, threads, 4);
    parallel_ranges(weight.tiles, tiles, threads,
                    [&](int64_t begin, int64_t end, int64_t) { integer_tiles(call, begin, end); });
    return kDone;
}

}  // namespace qspec
