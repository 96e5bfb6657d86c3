// hadamard_quantize_act: hadamard over blocks of a row, then quantize_act of the whole row, in one pass.
//
// Equals the two ops one after the other bit for bit: for BF16 input the transformed row is rounded to BF16
// in between, as the unfused op would store it. A task: some rows.

#include "hadamard.hpp"
#include "pool.hpp"
#include "program.hpp"
#include "quantize.hpp"

QSPEC_EXPORT int qspec_hadamard_quantize_act(int8_t* codes, float* scales, const void* x, int64_t bf16,
                                             const int8_t* base, int64_t base_size, int64_t rows, int64_t k,
                                             int64_t block, int64_t group_size, float qmax, float clip,
                                             int64_t threads) {
    using namespace qspec;
    const int64_t groups = (k + group_size - 1) / group_size;
    const int64_t slots = threads < 1 ? 1 : threads;
    Scratch<float> signs(base_size * base_size);
    Scratch<float> work(slots * 2 * k);
    if (!signs.ok() || !work.ok()) return kOutOfMemory;
    spread_signs(signs.get(), base, base_size, false);
    parallel_ranges(
        rows, 16384 / (k * base_size + 1), threads, [&](int64_t begin, int64_t end, int64_t slot) {
            float* in = work.get() + slot * 2 * k;
            float* result = in + k;
            for (int64_t i = begin; i < end; ++i) {
                if (bf16) {
                    widen(in, static_cast<const uint16_t*>(x) + i * k, k);
                } else {
                    widen(in, static_cast<const float*>(x) + i * k, k);
                }
                for (int64_t b = 0; b < k; b += block)
                    hadamard_row(result + b, in + b, signs.get(), base_size, block);
                if (bf16) round_row(result, k);
                quantize_row(result, codes + i * k, scales + i * groups, k, group_size, qmax, clip);
            }
        });
    return kDone;
}

QSPEC_RECORDABLE(hadamard_quantize_act)
