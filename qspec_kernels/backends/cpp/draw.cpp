// draw: an index from each of m rows of n weights (method: draw.hpp), one index of a row left out if asked
// for.
//
// A task: some pieces of rows; then some rows, each of which reads one piece again. Bytes of a call: 4 m n.

#include "draw.hpp"

namespace {

using namespace qspec;

struct Weights {
    const float* weights;
    int64_t without;  // -1: none

    double sum(int64_t begin, int64_t end) const {
        const Stored values = {weights};
        if (without < begin || without >= end) return sum_of(values, begin, end);
        return sum_of(values, begin, without) + sum_of(values, without + 1, end);
    }
    float one(int64_t i) const { return i == without ? 0.0f : weights[i]; }
    Weights whole() const { return {weights, -1}; }
};

}  // namespace

QSPEC_EXPORT int qspec_draw(int64_t* ids, const float* weights, int64_t count, const double* uniforms,
                            const int64_t* rows, const int64_t* without, int64_t m, int64_t n,
                            int64_t threads) {
    if (!all_inside(rows, m, 0, count) || !all_inside(without, m, -1, n)) return kOutOfRange;
    return draw_all(ids, uniforms, m, n, threads, [&](int64_t i) {
        return Weights{weights + (rows ? rows[i] : i) * n, without ? without[i] : -1};
    });
}

QSPEC_RECORDABLE(draw)
