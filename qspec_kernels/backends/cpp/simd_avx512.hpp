// AVX-512 (F, BW, DQ, VL, VNNI; BF16 where the library has it): one register is sixteen lanes.
#pragma once

#include <immintrin.h>

#if defined(__AVX512BF16__)
#define QSPEC_HAS_BF16_DOT 1
#endif

namespace qspec {

using f32 = __m512;
using i32 = __m512i;

// Accumulators of sixteen lanes in a register tile (dense, packed linears), and the rows of x in it.
inline constexpr int kDenseAccumulators = 24, kIntegerAccumulators = 16, kFloatAccumulators = 20;
inline constexpr int kTileColumns = 8;

inline f32 zero() { return _mm512_setzero_ps(); }
inline f32 set1(float x) { return _mm512_set1_ps(x); }
inline f32 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, f32 v) { _mm512_storeu_ps(p, v); }
inline f32 add(f32 a, f32 b) { return _mm512_add_ps(a, b); }
inline f32 sub(f32 a, f32 b) { return _mm512_sub_ps(a, b); }
inline f32 mul(f32 a, f32 b) { return _mm512_mul_ps(a, b); }
inline f32 div(f32 a, f32 b) { return _mm512_div_ps(a, b); }
inline f32 fma(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }
inline f32 max(f32 a, f32 b) { return _mm512_max_ps(a, b); }
inline f32 min(f32 a, f32 b) { return _mm512_min_ps(a, b); }

inline i32 set1(int32_t x) { return _mm512_set1_epi32(x); }
inline i32 load_bits(const void* p) { return _mm512_loadu_si512(p); }
inline void store_bits(void* p, i32 v) { _mm512_storeu_si512(p, v); }
inline i32 add(i32 a, i32 b) { return _mm512_add_epi32(a, b); }
inline i32 max(i32 a, i32 b) { return _mm512_max_epi32(a, b); }
inline i32 bit_and(i32 a, i32 b) { return _mm512_and_si512(a, b); }
template <int kBits>
inline i32 shift_left(i32 a) {
    return _mm512_slli_epi32(a, kBits);
}
template <int kBits>
inline i32 shift_right(i32 a) {
    return _mm512_srli_epi32(a, kBits);
}
inline i32 bits(f32 a) { return _mm512_castps_si512(a); }
inline f32 from_bits(i32 a) { return _mm512_castsi512_ps(a); }
inline f32 to_float(i32 a) { return _mm512_cvtepi32_ps(a); }
inline i32 round_to_int(f32 a) { return _mm512_cvtps_epi32(a); }
inline i32 from_bytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Whether sixteen bytes are all in kFirst..kLast.
template <uint8_t kFirst, uint8_t kLast>
inline bool all_between(const uint8_t* p) {
    const __m128i above =
        _mm_sub_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), _mm_set1_epi8(kFirst));
    return _mm_cmpgt_epu8_mask(above, _mm_set1_epi8(static_cast<char>(kLast - kFirst))) == 0;
}

// a == b ? x : y, a < b ? x : y, lane by lane.
inline i32 if_equal(i32 a, i32 b, i32 x, i32 y) {
    return _mm512_mask_mov_epi32(y, _mm512_cmpeq_epi32_mask(a, b), x);
}
inline f32 if_less(f32 a, f32 b, f32 x, f32 y) {
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
inline bool any_less(f32 a, f32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0; }
inline f32 zero_if_nan(f32 a) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a); }

inline f32 load(const uint16_t* bf16) {
    __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16));
    return from_bits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

// VCVTNEPS2BF16 flushes subnormals, torch does not: the rounding is done on the integers.
inline void store(uint16_t* bf16, f32 v) {
    i32 b = bits(v);
    i32 odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    i32 rounded = _mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, b, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bf16),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

inline void store_codes(int8_t* p, i32 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}

inline f32 load_f16(const uint16_t* f16) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(f16)));
}

// Lanes are folded in halves, 16 to 8 to 4 to 2 to 1: the one order of every horizontal sum.
inline float reduce_add(f32 v) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
// reduce_add of each, to out[0..4): the same pairs, of all four at once.
inline void reduce_add4(f32 a, f32 b, f32 c, f32 d, float* out) {
    const f32 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const f32 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    f32 all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, all)));
}
inline float reduce_max(f32 v) { return _mm512_reduce_max_ps(v); }
inline int32_t reduce_max(i32 v) { return _mm512_reduce_max_epi32(v); }

// One stage of a Hadamard butterfly inside the register: lanes i and i ^ kStride become a + b and a - b.
template <int kStride>
inline f32 butterfly(f32 v) {
    const i32 lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    constexpr __mmask16 upper = kStride == 1   ? 0xaaaa
                                : kStride == 2 ? 0xcccc
                                : kStride == 4 ? 0xf0f0
                                               : 0xff00;
    f32 other = _mm512_permutexvar_ps(_mm512_xor_si512(lane, _mm512_set1_epi32(kStride)), v);
    return _mm512_mask_sub_ps(_mm512_add_ps(v, other), upper, other, v);
}

// Sixteen rows of sixteen floats, rows and columns exchanged.
inline void transpose(f32 (&r)[16]) {
    f32 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// Eight activation codes of one row, broadcast against the sixteen rows of a chunk.
struct Codes8 {
    i32 low, high;
};
inline Codes8 broadcast_codes(const int8_t* x) {
    int32_t first, second;
    memcpy(&first, x, 4);
    memcpy(&second, x + 4, 4);
    return {_mm512_set1_epi32(first), _mm512_set1_epi32(second)};
}

// Eight unsigned weight codes of each of sixteen rows, a byte each: k = 0..3 in `low`, 4..7 in `high`.
struct Bytes8 {
    i32 low, high;
};
inline Bytes8 split_nibbles(i32 chunk) {
    const i32 mask = _mm512_set1_epi8(15);
    return {_mm512_and_si512(chunk, mask), _mm512_and_si512(_mm512_srli_epi16(chunk, 4), mask)};
}
inline Bytes8 lookup(Bytes8 nibbles, const uint8_t (&table)[16]) {
    i32 t = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return {_mm512_shuffle_epi8(t, nibbles.low), _mm512_shuffle_epi8(t, nibbles.high)};
}
inline i32 dot8(i32 sum, Bytes8 w, Codes8 x) {
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, w.low, x.low), w.high, x.high);
}

#if defined(QSPEC_HAS_BF16_DOT)
// lanes + pairs of BF16 products; the instruction adds the two products in its own fixed way.
inline f32 dot_bf16(f32 sum, i32 w, i32 x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
}
// Two table entries per lane: nibbles at bits 4*kSlice and 16 + 4*kSlice. VPERMW looks at five bits, so the
// sixteen entries stand twice in the table.
template <int kSlice>
inline i32 lookup_pairs(i32 chunk, i32 table) {
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(chunk, 4 * kSlice), table);
}
#else
// One table entry per lane: the nibble at bits 4*kSlice.
template <int kSlice>
inline f32 lookup_float(i32 chunk, const float (&table)[16]) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(chunk, 4 * kSlice), _mm512_loadu_ps(table));
}
#endif

}  // namespace qspec
