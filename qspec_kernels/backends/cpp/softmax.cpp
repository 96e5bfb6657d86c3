// softmax: out[i] = exp((x[i] - max x) / temperature) / sum, row by row; a row with a NaN, or whose highest
// value is infinite, becomes NaN throughout.
//
// Three passes over pieces of rows, and the sums of pieces in double, in order of the pieces. Values that are
// e^86.6 times less likely than the best become 0 (math.hpp). Bytes of a call: 4 m n read twice, 4 m n
// written twice and read once.

#include "math.hpp"
#include "pieces.hpp"
#include "program.hpp"

QSPEC_EXPORT int qspec_softmax(float* out, const float* x, int64_t m, int64_t n, float temperature,
                               int64_t threads) {
    using namespace qspec;
    const int64_t pieces = pieces_of(n);
    Scratch<float> highest(m * pieces), factors(m);
    Scratch<double> sums(m * pieces);
    if (!highest.ok() || !factors.ok() || !sums.ok()) return kOutOfMemory;
    parallel_pieces(m, n, threads, [&](int64_t index, int64_t row, int64_t at, int64_t count) {
        highest.get()[index] = highest_of(x + row * n + at, count);
    });
    for (int64_t i = 0; i < m; ++i)
        factors.get()[i] = highest_piece(highest.get() + i * pieces, pieces).value;

    const f32 scale = set1(1 / temperature);
    parallel_pieces(m, n, threads, [&](int64_t index, int64_t row, int64_t at, int64_t count) {
        const f32 top = set1(factors.get()[row]);
        const float* from = x + row * n + at;
        float* to = out + row * n + at;
        for_lanes(count, [&](int64_t i, int lanes) {
            store_lanes(to + i, exp(mul(sub(load_lanes(from + i, lanes), top), scale)), lanes);
        });
        sums.get()[index] = sum_of(Stored{to}, 0, count);
    });
    for (int64_t i = 0; i < m; ++i) {
        double total = 0;
        for (int64_t j = 0; j < pieces; ++j) total += sums.get()[i * pieces + j];
        factors.get()[i] = static_cast<float>(1 / total);
    }

    parallel_pieces(m, n, threads, [&](int64_t, int64_t row, int64_t at, int64_t count) {
        const f32 factor = set1(factors.get()[row]);
        float* to = out + row * n + at;
        for_lanes(count, [&](int64_t i, int lanes) {
            store_lanes(to + i, mul(load_lanes(to + i, lanes), factor), lanes);
        });
    });
    return kDone;
}

QSPEC_RECORDABLE(softmax)
