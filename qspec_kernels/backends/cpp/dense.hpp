// out[m, n] = sum over k of x[m, k] * w[n, k] (+ bias[n]) (+ residual[m, n]), weights row by row as torch
// holds them.
//
// Lanes run along K: one accumulator of sixteen lanes per output, filled from k = 0 upwards, folded at the
// end in reduce_add's order. A register tile is several weight rows times several rows of x, but each
// output's own order of additions is the same in every tile shape, which is what makes a row independent of
// M.
//
// A task covers a slice of N whose weights fit the second-level cache, and all of M: weights come from memory
// once. Bytes of a call: N*K weights, the rest is small.
#pragma once

#include "pool.hpp"
#include "simd.hpp"
#include "tiles.hpp"

namespace qspec {

// A row of x in the form the weights want: `Weights::Element` values, zero-padded to whole steps.
template <class Weights>
struct DenseCall {
    const typename Weights::Stored* weight;
    const typename Weights::Element* x;
    const float* bias;
    const void* residual;
    void* out;
    bool out_bf16;  // and the residual
    int64_t m, n, k, padded_k;
};

// The residual is added to what the linear alone would have stored.
inline void store_output(void* out, const void* residual, bool bf16, int64_t index, float value) {
    if (bf16) {
        uint16_t stored = float_to_bf16(value);
        if (residual)
            stored = float_to_bf16(bf16_to_float(static_cast<const uint16_t*>(residual)[index]) +
                                   bf16_to_float(stored));
        static_cast<uint16_t*>(out)[index] = stored;
    } else {
        if (residual) value = static_cast<const float*>(residual)[index] + value;
        static_cast<float*>(out)[index] = value;
    }
}

// Outputs [n, n + kRows) x [m, m + kColumns) over k in [k_begin, k_end), a multiple of the step but at the
// row's end. Unfinished accumulators wait in `carry` for the next part of K: a store and a load, which change
// no bit.
template <class Weights, int kRows, int kColumns>
inline void dense_tile(const DenseCall<Weights>& call, int64_t n, int64_t m, int64_t k_begin, int64_t k_end,
                       float* carry) {
    constexpr int step = Weights::kStep;
    const auto* w = call.weight + n * call.k;
    const auto* x = call.x + m * call.padded_k;
    // Every loop over the tile is unrolled: one that is not would move the sums through the stack.
    f32 sum[kRows][kColumns];
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < kColumns; ++c)
            sum[r][c] = k_begin ? load(carry + (r * kColumns + c) * kLanes) : zero();

    const int64_t whole = k_end / step * step;
    for (int64_t k = k_begin; k < whole; k += step) {
        typename Weights::Vector wv[kRows];
        // behind the end of this part of the rows comes the same part of the next tile's
        const int64_t ahead = k + Weights::kPrefetch;
        const auto* next = w + (ahead < k_end ? ahead : ahead - k_end + k_begin + kRows * call.k);
#pragma GCC unroll 32
        for (int r = 0; r < kRows; ++r) {
            // with a single row of x the core itself runs far enough ahead, and prefetches are in its way
            if constexpr (kColumns > 1) __builtin_prefetch(next + r * call.k);
            wv[r] = Weights::load_weights(w + r * call.k + k);
        }
#pragma GCC unroll 32
        for (int c = 0; c < kColumns; ++c) {
            const auto xv = Weights::load_x(x + c * call.padded_k + k);
#pragma GCC unroll 32
            for (int r = 0; r < kRows; ++r) sum[r][c] = Weights::multiply_add(sum[r][c], wv[r], xv);
        }
    }
    if (k_end < call.k) {
#pragma GCC unroll 32
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 32
            for (int c = 0; c < kColumns; ++c) store(carry + (r * kColumns + c) * kLanes, sum[r][c]);
        return;
    }
    if (whole < call.k) {
#pragma GCC unroll 32
        for (int r = 0; r < kRows; ++r) {
            typename Weights::Stored last[step] = {};
            memcpy(last, w + r * call.k + whole, sizeof(last[0]) * (call.k - whole));
            const auto wv = Weights::load_weights(last);
#pragma GCC unroll 32
            for (int c = 0; c < kColumns; ++c)
                sum[r][c] =
                    Weights::multiply_add(sum[r][c], wv, Weights::load_x(x + c * call.padded_k + whole));
        }
    }
#pragma GCC unroll 32
    for (int c = 0; c < kColumns; ++c) {
        float value[kRows];
        if constexpr (kRows == 4) {
            reduce_add4(sum[0][c], sum[1][c], sum[2][c], sum[3][c], value);
        } else {
#pragma GCC unroll 32
            for (int r = 0; r < kRows; ++r) value[r] = reduce_add(sum[r][c]);
        }
        if (call.bias)
            for (int r = 0; r < kRows; ++r) value[r] += call.bias[n + r];
        const int64_t at = (m + c) * call.n + n;
        if (call.out_bf16 || call.residual) {
            for (int r = 0; r < kRows; ++r)
                store_output(call.out, call.residual, call.out_bf16, at + r, value[r]);
        } else {
            memcpy(static_cast<float*>(call.out) + at, value, sizeof value);
        }
    }
}

// Weight rows [begin, end) times kColumns rows of x, the same part of K; returns the end of the used carry.
template <class Weights, int kColumns>
inline float* dense_strip(const DenseCall<Weights>& call, int64_t begin, int64_t end, int64_t m,
                          int64_t k_begin, int64_t k_end, float* carry) {
    constexpr int fitting = kDenseAccumulators / kColumns;
    constexpr int rows = fitting > 4 ? 4 : fitting;
    int64_t n = begin;
    for (; n + rows <= end; n += rows, carry += rows * kColumns * kLanes)
        dense_tile<Weights, rows, kColumns>(call, n, m, k_begin, k_end, carry);
    for (; n < end; ++n, carry += kColumns * kLanes)
        dense_tile<Weights, 1, kColumns>(call, n, m, k_begin, k_end, carry);
    return carry;
}

// A block: weight rows, rows of x, and bytes of K. Of this part of K the rows of x that a register tile
// takes, and the weight rows of two, fit the first-level cache; the block's weights fit the second.
constexpr int64_t kBlockRows = 32;
constexpr int64_t kBlockColumns = 48;
constexpr int64_t kBlockBytes = 4096;

// Few rows of x (a decode step) stay in the caches next to the core, and each weight row is read once from
// end to end. With more rows K is cut into parts, so that a part of the weights and of x serves many tiles
// from the caches.
template <class Weights>
inline bool cuts_k(const DenseCall<Weights>& call) {
    return call.m > 8 ||
           call.m * call.padded_k * static_cast<int64_t>(sizeof(typename Weights::Element)) > 96 << 10;
}

template <class Weights>
inline void dense_slice(const DenseCall<Weights>& call, int64_t begin, int64_t end, float* carry) {
    constexpr int most = kTileColumns;
    constexpr int block = most > 6 ? 6 : most;
    const bool cut = cuts_k(call);
    const int64_t part = cut ? kBlockBytes / static_cast<int64_t>(sizeof(typename Weights::Stored)) : call.k;
    const int64_t rows = cut ? kBlockRows : end - begin;
    for (int64_t first = 0; first < call.m; first += kBlockColumns) {
        const int64_t last = call.m - first < kBlockColumns ? call.m : first + kBlockColumns;
        for (int64_t n = begin; n < end; n += rows) {
            const int64_t n_end = end - n < rows ? end : n + rows;
            int64_t k = 0;
            do {
                const int64_t k_end = call.k - k > part ? k + part : call.k;
                float* kept = carry;
                for (int64_t m = first; m < last;) {
                    const int64_t take = last - m <= most ? last - m : block;
                    with_count<most>(take, [&](auto count) {
                        kept =
                            dense_strip<Weights, decltype(count)::value>(call, n, n_end, m, k, k_end, kept);
                    });
                    m += take;
                }
                k = k_end;
            } while (k < call.k);
        }
    }
}

template <class Weights>
inline int dense_linear(const DenseCall<Weights>& call, int64_t threads) {
    constexpr int64_t carry = kBlockRows * kBlockColumns * kLanes;
    const int64_t slots = threads < 1 ? 1 : threads;
    Scratch<float> kept(cuts_k(call) ? slots * carry : 0);
    if (!kept.ok()) return kOutOfMemory;
    const int64_t row_bytes = call.k * static_cast<int64_t>(sizeof(typename Weights::Stored));
    const int64_t rows = slice_rows(call.n, row_bytes, call.m, threads, 4);
    parallel_ranges(call.n, rows, threads, [&](int64_t begin, int64_t end, int64_t slot) {
        dense_slice(call, begin, end, cuts_k(call) ? kept.get() + slot * carry : nullptr);
    });
    return kDone;
}

}  // namespace qspec
