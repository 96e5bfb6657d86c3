// AVX2 with FMA and F16C: two registers are sixteen lanes.
#pragma once

#include <immintrin.h>

namespace qspec {

struct f32 {
    __m256 lo, hi;
};
struct i32 {
    __m256i lo, hi;
};

// Accumulators of sixteen lanes in a register tile (dense, packed linears), and the rows of x in it.
inline constexpr int kDenseAccumulators = 4, kIntegerAccumulators = 4, kFloatAccumulators = 4;
inline constexpr int kTileColumns = 2;

inline f32 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline f32 zero() { return set1(0.0f); }
inline f32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, f32 v) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}
inline f32 add(f32 a, f32 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline f32 sub(f32 a, f32 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline f32 mul(f32 a, f32 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline f32 div(f32 a, f32 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline f32 fma(f32 a, f32 b, f32 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline f32 max(f32 a, f32 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline f32 min(f32 a, f32 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }

inline i32 set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline i32 load_bits(const void* p) {
    auto q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void store_bits(void* p, i32 v) {
    auto q = static_cast<__m256i*>(p);
    _mm256_storeu_si256(q, v.lo);
    _mm256_storeu_si256(q + 1, v.hi);
}
inline i32 add(i32 a, i32 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline i32 max(i32 a, i32 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
inline i32 bit_and(i32 a, i32 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
template <int kBits>
inline i32 shift_left(i32 a) {
    return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
}
template <int kBits>
inline i32 shift_right(i32 a) {
    return {_mm256_srli_epi32(a.lo, kBits), _mm256_srli_epi32(a.hi, kBits)};
}
inline i32 bits(f32 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline f32 from_bits(i32 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline f32 to_float(i32 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline i32 round_to_int(f32 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline i32 from_bytes(const uint8_t* p) {
    __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(b), _mm256_cvtepu8_epi32(_mm_srli_si128(b, 8))};
}
// Whether sixteen bytes are all in kFirst..kLast.
template <uint8_t kFirst, uint8_t kLast>
inline bool all_between(const uint8_t* p) {
    const __m128i above =
        _mm_sub_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), _mm_set1_epi8(kFirst));
    const __m128i most = _mm_set1_epi8(static_cast<char>(kLast - kFirst));
    return _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(above, most), most)) == 0xffff;
}

// a == b ? x : y, a < b ? x : y, lane by lane.
inline i32 if_equal(i32 a, i32 b, i32 x, i32 y) {
    return {_mm256_blendv_epi8(y.lo, x.lo, _mm256_cmpeq_epi32(a.lo, b.lo)),
            _mm256_blendv_epi8(y.hi, x.hi, _mm256_cmpeq_epi32(a.hi, b.hi))};
}
inline f32 if_less(f32 a, f32 b, f32 x, f32 y) {
    return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
inline bool any_less(f32 a, f32 b) {
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ),
                                           _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))) != 0;
}
inline f32 zero_if_nan(f32 a) {
    return {_mm256_and_ps(a.lo, _mm256_cmp_ps(a.lo, a.lo, _CMP_ORD_Q)),
            _mm256_and_ps(a.hi, _mm256_cmp_ps(a.hi, a.hi, _CMP_ORD_Q))};
}

inline f32 load(const uint16_t* bf16) {
    auto half = [](const uint16_t* p) {
        __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
    };
    return {half(bf16), half(bf16 + 8)};
}

inline void store(uint16_t* bf16, f32 v) {
    auto round = [](__m256 x) {
        __m256i b = _mm256_castps_si256(x);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
        __m256i r = _mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7fff)), odd);
        __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        r = _mm256_blendv_epi8(r, _mm256_or_si256(b, _mm256_set1_epi32(0x400000)), nan);
        return _mm256_srli_epi32(r, 16);
    };
    __m256i packed = _mm256_packus_epi32(round(v.lo), round(v.hi));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bf16), _mm256_permute4x64_epi64(packed, 0xd8));
}

inline void store_codes(int8_t* p, i32 v) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.lo, v.hi), 0xd8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

inline f32 load_f16(const uint16_t* f16) {
    auto p = reinterpret_cast<const __m128i*>(f16);
    return {_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p + 1))};
}

// Lanes are folded in halves, 16 to 8 to 4 to 2 to 1: the one order of every horizontal sum.
inline float reduce_add(f32 v) {
    __m256 a = _mm256_add_ps(v.lo, v.hi);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
inline void reduce_add4(f32 a, f32 b, f32 c, f32 d, float* out) {
    out[0] = reduce_add(a), out[1] = reduce_add(b), out[2] = reduce_add(c), out[3] = reduce_add(d);
}
inline float reduce_max(f32 v) {
    __m256 a = _mm256_max_ps(v.lo, v.hi);
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}
inline int32_t reduce_max(i32 v) {
    int32_t lanes[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_max_epi32(v.lo, v.hi));
    int32_t best = lanes[0];
    for (int i = 1; i < 8; ++i) best = lanes[i] > best ? lanes[i] : best;
    return best;
}

// One stage of a Hadamard butterfly inside sixteen lanes: i and i ^ kStride become a + b and a - b.
template <int kStride>
inline f32 butterfly(f32 v) {
    if constexpr (kStride == 8) {
        return {_mm256_add_ps(v.lo, v.hi), _mm256_sub_ps(v.lo, v.hi)};
    } else {
        auto stage = [](__m256 x) {
            __m256 other = kStride == 1   ? _mm256_permute_ps(x, 0xb1)
                           : kStride == 2 ? _mm256_permute_ps(x, 0x4e)
                                          : _mm256_permute2f128_ps(x, x, 1);
            constexpr int upper = kStride == 1 ? 0xaa : kStride == 2 ? 0xcc : 0xf0;
            return _mm256_blend_ps(_mm256_add_ps(x, other), _mm256_sub_ps(other, x), upper);
        };
        return {stage(v.lo), stage(v.hi)};
    }
}

// Sixteen rows of sixteen floats, rows and columns exchanged.
inline void transpose(f32 (&r)[16]) {
    float square[16][16], flipped[16][16];
    for (int i = 0; i < 16; ++i) store(square[i], r[i]);
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) flipped[j][i] = square[i][j];
    for (int i = 0; i < 16; ++i) r[i] = load(flipped[i]);
}

// Eight activation codes of one row, broadcast against the sixteen rows of a chunk.
struct Codes8 {
    __m256i low, high;
};
inline Codes8 broadcast_codes(const int8_t* x) {
    int32_t first, second;
    memcpy(&first, x, 4);
    memcpy(&second, x + 4, 4);
    return {_mm256_set1_epi32(first), _mm256_set1_epi32(second)};
}

// Eight unsigned weight codes of each of sixteen rows, a byte each: k = 0..3 in `low`, 4..7 in `high`.
struct Bytes8 {
    i32 low, high;
};
inline Bytes8 split_nibbles(i32 chunk) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {{_mm256_and_si256(chunk.lo, mask), _mm256_and_si256(chunk.hi, mask)},
            {_mm256_and_si256(_mm256_srli_epi16(chunk.lo, 4), mask),
             _mm256_and_si256(_mm256_srli_epi16(chunk.hi, 4), mask)}};
}
inline Bytes8 lookup(Bytes8 n, const uint8_t (&table)[16]) {
    __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return {{_mm256_shuffle_epi8(t, n.low.lo), _mm256_shuffle_epi8(t, n.low.hi)},
            {_mm256_shuffle_epi8(t, n.high.lo), _mm256_shuffle_epi8(t, n.high.hi)}};
}
// Weight codes are at most 24, so four products stay below 2^15 and VPMADDUBSW cannot saturate.
inline i32 dot8(i32 sum, Bytes8 w, Codes8 x) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i lo =
        _mm256_add_epi16(_mm256_maddubs_epi16(w.low.lo, x.low), _mm256_maddubs_epi16(w.high.lo, x.high));
    __m256i hi =
        _mm256_add_epi16(_mm256_maddubs_epi16(w.low.hi, x.low), _mm256_maddubs_epi16(w.high.hi, x.high));
    return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(lo, ones)),
            _mm256_add_epi32(sum.hi, _mm256_madd_epi16(hi, ones))};
}

// One table entry per lane: the nibble at bits 4*kSlice. VPERMPS knows eight entries, so the nibble's top bit
// chooses between two lookups.
template <int kSlice>
inline f32 lookup_float(i32 chunk, const float (&table)[16]) {
    __m256 lower = _mm256_loadu_ps(table), upper = _mm256_loadu_ps(table + 8);
    auto half = [&](__m256i v) {
        __m256i index = _mm256_srli_epi32(v, 4 * kSlice);
        __m256 top = _mm256_castsi256_ps(_mm256_slli_epi32(v, 28 - 4 * kSlice));
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, index),
                                _mm256_permutevar8x32_ps(upper, index), top);
    };
    return {half(chunk.lo), half(chunk.hi)};
}

}  // namespace qspec
