// silu_mul_hadamard_quantize_act: silu_mul of a row, hadamard of its blocks (after a diagonal, if there is
// one), quantize_act of the whole, while the row is in the caches.
//
// Equals the three ops one after the other bit for bit: for BF16 input the gated and the transformed row are
// rounded to BF16 in between, as the unfused ops would store them. A task: some rows.

#include "hadamard.hpp"
#include "pool.hpp"
#include "program.hpp"
#include "quantize.hpp"
#include "silu_mul.hpp"

QSPEC_EXPORT int qspec_silu_mul_hadamard_quantize_act(int8_t* codes, float* scales, const void* x,
                                                      int64_t bf16, const int8_t* base, int64_t base_size,
                                                      const float* diagonal, int64_t rows, int64_t k,
                                                      int64_t block, int64_t group_size, float qmax,
                                                      float clip, int64_t threads) {
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
            with_element(bf16 != 0, [&](auto element) {
                using T = decltype(element);
                // the gated row, in x's dtype, where the transformed one will be
                T* gated = reinterpret_cast<T*>(result);
                for (int64_t i = begin; i < end; ++i) {
                    silu_mul_row(gated, static_cast<const T*>(x) + 2 * i * k, k);
                    widen(in, gated, k);
                    if (diagonal) scale_row(in, diagonal, k);
                    for (int64_t b = 0; b < k; b += block)
                        hadamard_row(result + b, in + b, signs.get(), base_size, block);
                    if (bf16) round_row(result, k);
                    quantize_row(result, codes + i * k, scales + i * groups, k, group_size, qmax, clip);
                }
            });
        });
    return kDone;
}

QSPEC_RECORDABLE(silu_mul_hadamard_quantize_act)
