// Inverse-CDF sampling: the first index whose running sum of weights exceeds uniform * total, in double.
//
// The running sum goes over pieces first (a piece's sum as in pieces.hpp), then over the values of the piece
// that crosses the threshold, so the pieces of a single row can be shared among threads. An index of weight 0
// never moves the running sum, and so is never drawn.
#pragma once

#include "pieces.hpp"
#include "program.hpp"

namespace qspec {

// -1 where the sum is not a number above 0. sums: one for each piece of the n weights.
template <class Weights>
inline int64_t find_index(const Weights& weights, const double* sums, int64_t n, double uniform) {
    const int64_t pieces = pieces_of(n);
    double total = 0;
    for (int64_t j = 0; j < pieces; ++j) total += sums[j];
    if (!(total > 0 && total < INFINITY)) return -1;
    const double threshold = uniform * total;
    double running = 0;
    int64_t piece = 0;
    for (; piece + 1 < pieces && !(running + sums[piece] > threshold); ++piece) running += sums[piece];
    const int64_t begin = piece * kPiece, end = n - begin < kPiece ? n : begin + kPiece;
    int64_t last = -1;
    for (int64_t i = begin; i < end; ++i) {
        const double weight = weights.one(i);
        running += weight;
        if (weight > 0) last = i;
        if (running > threshold) break;
    }
    // without the break the piece's own sum, which was added up in another order, was the larger one
    return last;
}

template <class Weights>
inline void sum_pieces(const Weights& weights, double* sums, int64_t n) {
    for (int64_t at = 0, j = 0; at < n; at += kPiece, ++j)
        sums[j] = weights.sum(at, n - at < kPiece ? n : at + kPiece);
}

// weights_of(i) are those of draw i: sum(begin, end), one(index), and whole(), which are drawn from where
// they have no mass.
template <class WeightsOf>
inline int draw_all(int64_t* ids, const double* uniforms, int64_t m, int64_t n, int64_t threads,
                    const WeightsOf& weights_of) {
    const int64_t pieces = pieces_of(n);
    Scratch<double> sums(m * pieces);
    if (!sums.ok()) return kOutOfMemory;
    parallel_pieces(m, n, threads, [&](int64_t index, int64_t i, int64_t at, int64_t count) {
        sums.get()[index] = weights_of(i).sum(at, at + count);
    });
    parallel_ranges(m, 8192 / kPiece, threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; ++i) {
            double* own = sums.get() + i * pieces;
            ids[i] = find_index(weights_of(i), own, n, uniforms[i]);
            if (ids[i] >= 0) continue;
            const auto whole = weights_of(i).whole();
            sum_pieces(whole, own, n);
            ids[i] = find_index(whole, own, n, uniforms[i]);
        }
    });
    return kDone;
}

// Whether indices[0..m-1], if there are any, lie in least..count-1.
inline bool all_inside(const int64_t* indices, int64_t m, int64_t least, int64_t count) {
    for (int64_t i = 0; indices && i < m; ++i)
        if (indices[i] < least || indices[i] >= count) return false;
    return true;
}

}  // namespace qspec
