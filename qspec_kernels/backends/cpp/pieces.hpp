// Rows as long as a vocabulary, in pieces of fixed size: threads share out the pieces of few rows, and what a
// piece gives depends neither on who takes it nor on other rows.
#pragma once

#include <math.h>

#include "pool.hpp"
#include "simd.hpp"

namespace qspec {

inline constexpr int64_t kPiece = 2048;

inline int64_t pieces_of(int64_t n) { return (n + kPiece - 1) / kPiece; }

// body(index, row, at, count) for every piece of every row of n values: values at..at+count-1 of the row, and
// the piece's number among those of all rows.
template <class Body>
inline void parallel_pieces(int64_t rows, int64_t n, int64_t threads, const Body& body) {
    const int64_t pieces = pieces_of(n), longest = n < kPiece ? n : kPiece;
    parallel_ranges(rows * pieces, 8192 / (longest + 1), threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t index = begin; index < end; ++index) {
            const int64_t at = index % pieces * kPiece, left = n - at;
            body(index, index / pieces, at, left < kPiece ? left : kPiece);
        }
    });
}

// The highest value; NaN if one is NaN, which no comparison of values would tell: magnitudes are compared as
// integers, where a NaN is above infinity.
inline float highest_of(const float* x, int64_t count) {
    const i32 magnitude = set1(0x7fffffff);
    f32 highest = set1(-INFINITY);
    i32 largest = set1(0);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const f32 v = load(x + i);
        highest = max(highest, v);
        largest = max(largest, bit_and(bits(v), magnitude));
    }
    bool nan = reduce_max(largest) > 0x7f800000;
    float best = reduce_max(highest);
    for (; i < count; ++i) {
        nan = nan || x[i] != x[i];
        best = x[i] > best ? x[i] : best;
    }
    return nan ? NAN : best;
}

// The piece that has the highest value, the first of several; `highest` holds a value for each. The value is
// NaN if one is NaN.
struct HighestPiece {
    int64_t piece;
    float value;
};
inline HighestPiece highest_piece(const float* highest, int64_t pieces) {
    HighestPiece best = {0, highest[0]};
    for (int64_t j = 0; j < pieces; ++j) {
        if (highest[j] != highest[j]) return {j, highest[j]};
        if (highest[j] > best.value) best = {j, highest[j]};
    }
    return best;
}

// Eight floats from memory as doubles.
typedef double EightWide __attribute__((vector_size(64)));
inline EightWide widened(const float* x) {
    typedef float Eight __attribute__((vector_size(32)));
    Eight v;
    memcpy(&v, x, sizeof v);
    return __builtin_convertvector(v, EightWide);
}

// The sum of values begin..end-1, in double and in an order that depends on the range alone. one(i) is a
// value; sixteen(i, room) are those from i on, in memory: in `room` unless they lie in some already.
template <class Values>
inline double sum_of(const Values& values, int64_t begin, int64_t end) {
    alignas(64) float room[kLanes];
    EightWide sums[2] = {};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
        const float* v = values.sixteen(i, room);
        sums[0] += widened(v);
        sums[1] += widened(v + 8);
    }
    const EightWide both = sums[0] + sums[1];
    double total = 0;
    for (int lane = 0; lane < 8; ++lane) total += both[lane];
    for (; i < end; ++i) total += values.one(i);
    return total;
}

// Values that lie in memory.
struct Stored {
    const float* values;
    const float* sixteen(int64_t i, float*) const { return values + i; }
    float one(int64_t i) const { return values[i]; }
};

}  // namespace qspec
