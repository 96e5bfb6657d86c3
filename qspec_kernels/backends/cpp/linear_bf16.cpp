// linear_bf16: out[m, n] = sum_k bf16(x[m, k]) * w[n, k] (+ bias[n]) (+ residual[m, n]), sums in float32.
//
// Formula and order of sums: dense.hpp, bf16_weights.hpp; with AMX amx_bf16.hpp. A task: a slice of output
// features. Bytes of a call: 2*N*K.

#include "amx_bf16.hpp"
#include "bf16_weights.hpp"
#include "program.hpp"

QSPEC_EXPORT int qspec_linear_bf16(void* out, const void* x, int64_t bf16, const uint16_t* weight,
                                   const float* bias, const void* residual, int64_t m, int64_t n, int64_t k,
                                   int64_t threads) {
    using namespace qspec;
#if defined(QSPEC_HAS_TILES)
    return tile_linear_bf16(x, weight, {out, bias, residual, bf16 != 0, n}, m, k, threads);
#else
    const int64_t padded = (k + 31) / 32 * 32;
    Scratch<Bf16Weights::Element> arranged(m * padded);
    if (!arranged.ok()) return kOutOfMemory;
    arrange_rows(x, bf16 != 0, arranged.get(), m, k, padded, threads);
    const DenseCall<Bf16Weights> call = {weight, arranged.get(), bias, residual, out, bf16 != 0, m, n,
                                         k,      padded};
    return dense_linear(call, threads);
#endif
}

QSPEC_RECORDABLE(linear_bf16)
