// linear_fp32: out[m, n] = sum_k x[m, k] * w[n, k] (+ bias[n]) (+ residual[m, n]), everything float32.
//
// A task: a slice of output features (see dense.hpp). Bytes of a call: 4*N*K.

#include "dense.hpp"
#include "program.hpp"

namespace {

using namespace qspec;

struct Fp32Weights {
    using Stored = float;
    using Element = float;
    using Vector = f32;
    static constexpr int kStep = 16;
    static constexpr int64_t kPrefetch = 512;
    static Vector load_weights(const float* p) { return load(p); }
    static Vector load_x(const float* p) { return load(p); }
    static f32 multiply_add(f32 sum, f32 w, f32 x) { return fma(w, x, sum); }
};

}  // namespace

QSPEC_EXPORT int qspec_linear_fp32(float* out, const float* x, const float* weight, const float* bias,
                                   const float* residual, int64_t m, int64_t n, int64_t k, int64_t threads) {
    const int64_t padded = (k + 15) / 16 * 16;
    Scratch<float> scratch(padded == k ? 0 : m * padded);
    if (!scratch.ok()) return kOutOfMemory;
    if (padded != k) {
        for (int64_t i = 0; i < m; ++i) {
            float* row = scratch.get() + i * padded;
            memcpy(row, x + i * k, sizeof(float) * k);
            for (int64_t j = k; j < padded; ++j) row[j] = 0;
        }
    }
    DenseCall<Fp32Weights> call = {
        weight, padded == k ? x : scratch.get(), bias, residual, out, false, m, n, k, padded};
    return dense_linear(call, threads);
}

QSPEC_RECORDABLE(linear_fp32)
