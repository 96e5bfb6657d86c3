// linear_w4a8: int4 weights, 8-bit activation codes with one scale per row (per group works too).
//
// Formula, tasks and bytes: linear_integer.hpp.

#include "linear_integer.hpp"
#include "program.hpp"

QSPEC_EXPORT int qspec_linear_w4a8(float* out, const int8_t* codes, const float* x_scales,
                                   int64_t scale_columns, const void* data, const void* scales,
                                   const float* bias, const float* residual, int64_t m, int64_t n, int64_t k,
                                   int64_t group_size, int64_t threads) {
    return qspec::integer_linear<qspec::Int4>(out, codes, x_scales, scale_columns, data, scales, bias,
                                              residual, m, n, k, group_size, threads);
}

QSPEC_RECORDABLE(linear_w4a8)
