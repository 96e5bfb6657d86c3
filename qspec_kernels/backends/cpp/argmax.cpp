// argmax: index of the highest of each row's n values, the lowest of several; -1 where one is NaN or the
// highest is infinite.
//
// A task: some pieces of rows; then some rows, each of which reads its best piece again. Bytes of a call: 4 m
// n.

#include "pieces.hpp"
#include "program.hpp"

QSPEC_EXPORT int qspec_argmax(int64_t* ids, const float* x, int64_t m, int64_t n, int64_t threads) {
    using namespace qspec;
    const int64_t pieces = pieces_of(n);
    Scratch<float> highest(m * pieces);
    if (!highest.ok()) return kOutOfMemory;
    parallel_pieces(m, n, threads, [&](int64_t index, int64_t row, int64_t at, int64_t count) {
        highest.get()[index] = highest_of(x + row * n + at, count);
    });
    parallel_ranges(m, 8192 / kPiece, threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; ++i) {
            const HighestPiece best = highest_piece(highest.get() + i * pieces, pieces);
            ids[i] = -1;
            if (!isfinite(best.value)) continue;
            int64_t at = best.piece * kPiece;
            while (x[i * n + at] != best.value) ++at;
            ids[i] = at;
        }
    });
    return kDone;
}

QSPEC_RECORDABLE(argmax)
