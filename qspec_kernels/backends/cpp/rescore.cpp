// rescore: the `count` largest of each row of logits, ties to the lowest index, become what linear_bf16 would
// give there: sum_k bf16(x[m, k]) * w[n, k] (+ bias[n]), the same bits.
//
// A task: some rows. Bytes of a call: M*N*4 logits and M*count*K*2 weights.

#include <math.h>

#include "amx_bf16.hpp"
#include "bf16_weights.hpp"
#include "program.hpp"

namespace {

using namespace qspec;

// The largest values so far, in no order; `last` is the one to be given up next.
struct Best {
    float* values;
    int64_t* indices;
    int64_t count, filled = 0, last = 0;

    void find_last() {
        last = 0;
        for (int64_t i = 1; i < count; ++i)
            if (values[i] < values[last] || (values[i] == values[last] && indices[i] > indices[last]))
                last = i;
    }
    void offer(float value, int64_t index) {
        if (filled < count) {
            values[filled] = value;
            indices[filled++] = index;
            if (filled == count) find_last();
        } else if (values[last] < value) {
            values[last] = value;
            indices[last] = index;
            find_last();
        }
    }
};

void find_best(Best& best, const float* logits, int64_t n) {
    for_lanes(n, [&](int64_t begin, int lanes) {
        if (best.filled == best.count && lanes == kLanes &&
            !any_less(set1(best.values[best.last]), load(logits + begin)))
            return;
        for (int64_t i = begin; i < begin + lanes; ++i)
            if (logits[i] > -INFINITY) best.offer(logits[i], i);
    });
}

}  // namespace

QSPEC_EXPORT int qspec_rescore(float* logits, const void* x, int64_t bf16, const uint16_t* weight,
                               const float* bias, int64_t count, int64_t m, int64_t n, int64_t k,
                               int64_t threads) {
    const int64_t padded = (k + 31) / 32 * 32, slots = threads < 1 ? 1 : threads;
    if (count > n) count = n;
    Scratch<Bf16Weights::Element> arranged(m * padded);
    Scratch<float> values(slots * count);
    Scratch<int64_t> indices(slots * count);
    if (!arranged.ok() || !values.ok() || !indices.ok()) return kOutOfMemory;
    arrange_rows(x, bf16 != 0, arranged.get(), m, k, padded, threads);
    [[maybe_unused]] const DenseCall<Bf16Weights> call = {
        weight, arranged.get(), bias, nullptr, logits, false, m, n, k, padded};
    parallel_ranges(m, 1, threads, [&](int64_t begin, int64_t end, int64_t slot) {
        for (int64_t i = begin; i < end; ++i) {
            Best best = {values.get() + slot * count, indices.get() + slot * count, count};
            find_best(best, logits + i * n, n);
#if defined(QSPEC_HAS_TILES)
            const uint16_t* row = arranged.get() + i * padded;
            tile_chosen_rows(weight, row, k, best.indices, best.filled, [&](int64_t at, float sum) {
                logits[i * n + at] = bias ? sum + bias[at] : sum;
            });
#else
            for (int64_t j = 0; j < best.filled; ++j)
                dense_tile<Bf16Weights, 1, 1>(call, best.indices[j], i, 0, k, nullptr);
#endif
            // as the linear itself would have left them
            for (int64_t j = 0; bf16 && j < best.filled; ++j) {
                float& logit = logits[i * n + best.indices[j]];
                logit = bf16_to_float(float_to_bf16(logit));
            }
        }
    });
    return kDone;
}

QSPEC_RECORDABLE(rescore)
