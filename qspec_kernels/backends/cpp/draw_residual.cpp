// draw_residual: an index from max(p - q, 0) of each of m pairs of rows (method: draw.hpp), or from p where
// that is 0 throughout or there is no q.
//
// A task: some pieces of rows; then some rows, each of which reads one piece again. Bytes of a call: 8 m n.

#include "draw.hpp"

namespace {

using namespace qspec;

struct Residual {
    const float* p;
    const float* q;  // nullptr: nothing is subtracted

    const float* sixteen(int64_t i, float* room) const {
        store(room, max(sub(load(p + i), load(q + i)), zero()));
        return room;
    }
    float one(int64_t i) const {
        const float left = q ? p[i] - q[i] : p[i];
        return left > 0 ? left : 0.0f;
    }
    double sum(int64_t begin, int64_t end) const {
        return q ? sum_of(*this, begin, end) : sum_of(Stored{p}, begin, end);
    }
    Residual whole() const { return {p, nullptr}; }
};

}  // namespace

QSPEC_EXPORT int qspec_draw_residual(int64_t* ids, const float* p, int64_t p_count, const float* q,
                                     int64_t q_count, const double* uniforms, const int64_t* p_rows,
                                     const int64_t* q_rows, int64_t m, int64_t n, int64_t threads) {
    if (!all_inside(p_rows, m, 0, p_count) || !all_inside(q_rows, m, -1, q_count)) return kOutOfRange;
    return draw_all(ids, uniforms, m, n, threads, [&](int64_t i) {
        const int64_t q_row = q_rows ? q_rows[i] : i;
        return Residual{p + (p_rows ? p_rows[i] : i) * n, q_row < 0 ? nullptr : q + q_row * n};
    });
}

QSPEC_RECORDABLE(draw_residual)
