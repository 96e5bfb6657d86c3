// linear_mxfp4a16: mxfp4 weights, activations rounded to BF16, sums in float32.
//
// Formula, tasks and bytes: linear_float.hpp.

#include "linear_float.hpp"
#include "program.hpp"

QSPEC_EXPORT int qspec_linear_mxfp4a16(void* out, const void* x, int64_t bf16, const void* data,
                                       const void* scales, const float* bias, const void* residual, int64_t m,
                                       int64_t n, int64_t k, int64_t group_size, int64_t threads) {
    return qspec::float_linear<qspec::Mxfp4>(out, x, bf16 != 0, data, scales, bias, residual, m, n, k,
                                             group_size, threads);
}

QSPEC_RECORDABLE(linear_mxfp4a16)
