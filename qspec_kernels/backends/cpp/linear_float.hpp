// Linears of 4-bit weights and BF16 activations.
//
//     s_g       = sum over k in g of value(wcode[n, k]) * bf16(x[m, k])      in float32
//     out[m, n] = ((s_0 * wscale[n, 0] + s_1 * wscale[n, 1]) + ...) (+ bias[n]) (+ residual[m, n]), all
//     rounded
//
// Sixteen output features are the lanes. With AVX512-BF16 a table lookup turns a slice of a chunk (two
// nibbles a row) into two BF16 values and VDPBF16PS takes both; elsewhere a slice is one nibble and one
// float32 multiply-add. The order of additions, slice after slice, is the same for every M and every register
// tile.
//
// A task covers some tiles of sixteen output features and all rows of x. Bytes of a call: N*K/2 codes and
// N*K/group scales.
#pragma once

#include "amx_packed.hpp"
#include "packed.hpp"
#include "pool.hpp"
#include "tiles.hpp"

namespace qspec {

#if defined(QSPEC_HAS_BF16_DOT)

template <class Format>
struct Slices {
    using Element = uint16_t;
    using Vector = i32;
    static constexpr int kCount = 4;
    static constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    i32 table;

    Slices() {
        uint16_t entries[32];
        for (int i = 0; i < 32; ++i) entries[i] = float_to_bf16(Format::kValues[i % 16]);
        table = load_bits(entries);
    }
    template <int kSlice>
    Vector values(i32 chunk) const {
        return lookup_pairs<kSlice>(chunk, table);
    }
    static Vector broadcast(const Element* x, int slice) {
        int32_t pair;
        memcpy(&pair, x + 2 * slice, 4);
        return set1(pair);
    }
    static f32 multiply_add(f32 sum, Vector w, Vector x) { return dot_bf16(sum, w, x); }
    static Element element(float x) { return float_to_bf16(x); }
    static Element element(uint16_t x) { return x; }
};

#else

template <class Format>
struct Slices {
    using Element = float;
    using Vector = f32;
    static constexpr int kCount = 8;
    static constexpr int kOrder[8] = {0, 4, 1, 5, 2, 6, 3, 7};

    template <int kSlice>
    Vector values(i32 chunk) const {
        return lookup_float<kSlice>(chunk, Format::kValues);
    }
    static Vector broadcast(const Element* x, int slice) { return set1(x[slice]); }
    static f32 multiply_add(f32 sum, Vector w, Vector x) { return fma(w, x, sum); }
    static Element element(float x) { return bf16_to_float(float_to_bf16(x)); }
    static Element element(uint16_t x) { return bf16_to_float(x); }
};

#endif

template <class Format>
struct FloatCall {
    PackedMatrix<Format> weight;
    const typename Slices<Format>::Element* x;  // [m, chunks * 8], each chunk in kOrder
    const float* bias;
    const void* residual;
    void* out;
    bool out_bf16;  // and the residual
    int64_t m;
};

template <class Format, int kTiles, int kColumns>
inline void float_tile(const FloatCall<Format>& call, int64_t tile, int64_t m) {
    const Slices<Format> slices;
    const auto& w = call.weight;
    const int64_t row = w.chunks * 8;
    const uint8_t* data = w.tile(tile);
    const auto* scales = w.tile_scales(tile);
    const auto* x = call.x + m * row;
    f32 total[kTiles][kColumns];
    for (int t = 0; t < kTiles; ++t)
        for (int c = 0; c < kColumns; ++c) total[t][c] = zero();

    int64_t chunk = 0;
    for (int64_t g = 0; g < w.groups; ++g) {
        f32 sum[kTiles][kColumns];
        for (int t = 0; t < kTiles; ++t)
            for (int c = 0; c < kColumns; ++c) sum[t][c] = zero();
        for (const int64_t end = w.group_end(g); chunk < end; ++chunk) {
            i32 codes[kTiles];
            const uint8_t* next = data + ahead(chunk, w.chunks, kTiles) * 64;
            for (int t = 0; t < kTiles; ++t) {
                const uint8_t* p = data + (t * w.chunks + chunk) * 64;
                __builtin_prefetch(next + t * w.chunks * 64);
                codes[t] = load_bits(p);
            }
            for_each_count<Slices<Format>::kCount>([&](auto slice) {
                constexpr int s = decltype(slice)::value;
                typename Slices<Format>::Vector values[kTiles];
                for (int t = 0; t < kTiles; ++t) values[t] = slices.template values<s>(codes[t]);
                for (int c = 0; c < kColumns; ++c) {
                    const auto xv = slices.broadcast(x + c * row + chunk * 8, s);
                    for (int t = 0; t < kTiles; ++t)
                        sum[t][c] = slices.multiply_add(sum[t][c], values[t], xv);
                }
            });
        }
        for (int t = 0; t < kTiles; ++t) {
            prefetch_scales(w, scales, t, g, kTiles);
            const f32 scale = Format::scale(scales + (t * w.groups + g) * 16,
                                            data + (t * w.chunks + g * w.group_chunks) * 64);
            for (int c = 0; c < kColumns; ++c) total[t][c] = add(total[t][c], mul(sum[t][c], scale));
        }
    }
    for (int t = 0; t < kTiles; ++t) {
        const int64_t n = (tile + t) * 16;
        const int lanes = w.n - n < 16 ? static_cast<int>(w.n - n) : 16;
        for (int c = 0; c < kColumns; ++c) {
            f32 value = total[t][c];
            if (call.bias) value = add(value, load_lanes(call.bias + n, lanes));
            const int64_t at = (m + c) * w.n + n;
            with_element(call.out_bf16, [&](auto element) {
                using T = decltype(element);
                T* out = static_cast<T*>(call.out) + at;
                store_lanes(out, value, lanes);
                // the residual is added to what the linear alone would have stored
                if (!call.residual) return;
                const f32 residual = load_lanes(static_cast<const T*>(call.residual) + at, lanes);
                store_lanes(out, add(residual, load_lanes(out, lanes)), lanes);
            });
        }
    }
}

template <class Format>
inline void float_tiles(const FloatCall<Format>& call, int64_t begin, int64_t end) {
    constexpr int most = kTileColumns;
    for (int64_t m = 0; m < call.m;) {
        const int64_t take = call.m - m < most ? call.m - m : most;
        with_count<most>(take, [&](auto count) {
            constexpr int columns = decltype(count)::value;
            constexpr int tiles = tiles_beside(kFloatAccumulators / columns);
            int64_t t = begin;
            for (; t + tiles <= end; t += tiles) float_tile<Format, tiles, columns>(call, t, m);
            for (; t < end; ++t) float_tile<Format, 1, columns>(call, t, m);
        });
        m += take;
    }
}

template <class Format, class T>
inline void arrange_row(const T* x, typename Slices<Format>::Element* out, int64_t k, int64_t row) {
    using S = Slices<Format>;
    int64_t i = 0;
    for (; i + 8 <= k; i += 8)
        for (int j = 0; j < 8; ++j) out[i + j] = S::element(x[i + S::kOrder[j]]);
    for (; i < row; i += 8)
        for (int j = 0; j < 8; ++j) out[i + j] = i + S::kOrder[j] < k ? S::element(x[i + S::kOrder[j]]) : 0;
}

template <class Format>
inline int float_linear(void* out, const void* x, bool bf16, const void* data, const void* scales,
                        const float* bias, const void* residual, int64_t m, int64_t n, int64_t k,
                        int64_t group_size, int64_t threads) {
    const PackedMatrix<Format> weight(data, scales, n, k, group_size);
#if defined(QSPEC_HAS_TILES)
    // for every M, so that there is one order of sums
    return tile_float_linear(x, weight, {out, bias, residual, bf16, n}, m, threads);
#else
    using Element = typename Slices<Format>::Element;
    const int64_t row = weight.chunks * 8;
    Scratch<Element> arranged(m * row);
    if (!arranged.ok()) return kOutOfMemory;
    parallel_ranges(m, 65536 / (row + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; ++i) {
            Element* to = arranged.get() + i * row;
            if (bf16) {
                arrange_row<Format>(static_cast<const uint16_t*>(x) + i * k, to, k, row);
            } else {
                arrange_row<Format>(static_cast<const float*>(x) + i * k, to, k, row);
            }
        }
    });
    const FloatCall<Format> call = {weight, arranged.get(), bias, residual, out, bf16, m};
    const int64_t tiles = slice_rows(weight.tiles, weight.tile_bytes(), m, threads, 4);
    parallel_ranges(weight.tiles, tiles, threads,
                    [&](int64_t begin, int64_t end, int64_t) { float_tiles(call, begin, end); });
    return kDone;
#endif
}

}  // namespace qspec
