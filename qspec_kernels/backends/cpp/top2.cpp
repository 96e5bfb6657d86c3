// top2: the two highest of each row's n values, and the index of the highest, the lowest of several; -1 and
// NaN where one value is NaN or the highest is infinite. The second of a row of one value is -infinity.
//
// A task: some pieces of rows; then some rows, each of which reads its best piece again. Bytes of a call: 4 m
// n.

#include "pieces.hpp"
#include "program.hpp"

namespace {

using namespace qspec;

struct Two {
    float first = -INFINITY, second = -INFINITY;

    void take(float value) {
        const float lower = value < first ? value : first;
        first = value > first ? value : first;
        second = lower > second ? lower : second;
    }
};

// The two highest values; the first is NaN if one is NaN, told as in `highest_of`.
Two highest_two_of(const float* x, int64_t count) {
    const i32 magnitude = set1(0x7fffffff);
    f32 first = set1(-INFINITY), second = first;
    i32 largest = set1(0);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const f32 v = load(x + i);
        second = max(second, min(first, v));
        first = max(first, v);
        largest = max(largest, bit_and(bits(v), magnitude));
    }
    float firsts[kLanes], seconds[kLanes];
    store(firsts, first);
    store(seconds, second);
    Two best;
    for (int lane = 0; lane < kLanes; ++lane) {
        best.take(firsts[lane]);
        best.take(seconds[lane]);
    }
    bool nan = reduce_max(largest) > 0x7f800000;
    for (; i < count; ++i) {
        nan = nan || x[i] != x[i];
        best.take(x[i]);
    }
    if (nan) best.first = NAN;
    return best;
}

}  // namespace

QSPEC_EXPORT int qspec_top2(int64_t* ids, float* values, const float* x, int64_t m, int64_t n,
                            int64_t threads) {
    const int64_t pieces = pieces_of(n);
    Scratch<Two> highest(m * pieces);
    if (!highest.ok()) return kOutOfMemory;
    parallel_pieces(m, n, threads, [&](int64_t index, int64_t row, int64_t at, int64_t count) {
        highest.get()[index] = highest_two_of(x + row * n + at, count);
    });
    parallel_ranges(m, 8192 / kPiece, threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; ++i) {
            const Two* of_piece = highest.get() + i * pieces;
            Two best;
            bool nan = false;
            int64_t at = 0;
            for (int64_t j = 0; j < pieces; ++j) {
                nan = nan || of_piece[j].first != of_piece[j].first;
                if (of_piece[j].first > best.first) at = j * kPiece;
                best.take(of_piece[j].first);
                best.take(of_piece[j].second);
            }
            const bool none = nan || !isfinite(best.first);
            ids[i] = -1;
            values[2 * i] = none ? NAN : best.first;
            values[2 * i + 1] = none ? NAN : best.second;
            if (none) continue;
            while (x[i * n + at] != best.first) ++at;
            ids[i] = at;
        }
    });
    return kDone;
}

QSPEC_RECORDABLE(top2)
