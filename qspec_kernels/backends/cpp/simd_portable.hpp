// Any machine: the compiler's vector extension, lowered to whatever registers there are (SSE2 on x86-64).
#pragma once

#include <math.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace qspec {

typedef float f32 __attribute__((vector_size(64)));
typedef int32_t i32 __attribute__((vector_size(64)));
typedef uint8_t u8x64 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

// Accumulators of sixteen lanes in a register tile (dense, packed linears), and the rows of x in it.
inline constexpr int kDenseAccumulators = 2, kIntegerAccumulators = 2, kFloatAccumulators = 2;
inline constexpr int kTileColumns = 1;

inline f32 set1(float x) { return f32{} + x; }
inline f32 zero() { return f32{}; }
inline f32 load(const float* p) {
    f32 v;
    memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, f32 v) { memcpy(p, &v, sizeof v); }
inline f32 add(f32 a, f32 b) { return a + b; }
inline f32 sub(f32 a, f32 b) { return a - b; }
inline f32 mul(f32 a, f32 b) { return a * b; }
inline f32 div(f32 a, f32 b) { return a / b; }
inline f32 fma(f32 a, f32 b, f32 c) { return a * b + c; }
inline f32 max(f32 a, f32 b) { return a > b ? a : b; }
inline f32 min(f32 a, f32 b) { return a < b ? a : b; }

inline i32 set1(int32_t x) { return i32{} + x; }
inline i32 load_bits(const void* p) {
    i32 v;
    memcpy(&v, p, sizeof v);
    return v;
}
inline void store_bits(void* p, i32 v) { memcpy(p, &v, sizeof v); }
inline i32 add(i32 a, i32 b) { return a + b; }
inline i32 max(i32 a, i32 b) { return a > b ? a : b; }
inline i32 bit_and(i32 a, i32 b) { return a & b; }
template <int kBits>
inline i32 shift_left(i32 a) {
    return a << kBits;
}
template <int kBits>
inline i32 shift_right(i32 a) {
    typedef uint32_t u32 __attribute__((vector_size(64)));
    return reinterpret_cast<i32>(reinterpret_cast<u32>(a) >> kBits);
}
inline i32 bits(f32 a) { return reinterpret_cast<i32>(a); }
inline f32 from_bits(i32 a) { return reinterpret_cast<f32>(a); }
inline f32 to_float(i32 a) { return __builtin_convertvector(a, f32); }
inline i32 round_to_int(f32 a) {
#if defined(__SSE2__)
    i32 v;
    for (int i = 0; i < kLanes; i += 4) {
        __m128 part;
        memcpy(&part, reinterpret_cast<const float*>(&a) + i, sizeof part);
        __m128i whole = _mm_cvtps_epi32(part);
        memcpy(reinterpret_cast<int32_t*>(&v) + i, &whole, sizeof whole);
    }
    return v;
#else
    i32 v;
    for (int i = 0; i < kLanes; ++i) v[i] = static_cast<int32_t>(rintf(a[i]));
    return v;
#endif
}
inline i32 from_bytes(const uint8_t* p) {
    i32 v;
    for (int i = 0; i < kLanes; ++i) v[i] = p[i];
    return v;
}
// Whether sixteen bytes are all in kFirst..kLast.
template <uint8_t kFirst, uint8_t kLast>
inline bool all_between(const uint8_t* p) {
    bool outside = false;
    for (int i = 0; i < kLanes; ++i) outside |= static_cast<uint8_t>(p[i] - kFirst) > kLast - kFirst;
    return !outside;
}

// a == b ? x : y, a < b ? x : y, lane by lane.
inline i32 if_equal(i32 a, i32 b, i32 x, i32 y) { return a == b ? x : y; }
inline f32 if_less(f32 a, f32 b, f32 x, f32 y) { return a < b ? x : y; }
inline bool any_less(f32 a, f32 b) {
    const i32 less = a < b;
    int32_t any = 0;
    for (int i = 0; i < kLanes; ++i) any |= less[i];
    return any != 0;
}
inline f32 zero_if_nan(f32 a) { return a == a ? a : f32{}; }

inline f32 load(const uint16_t* bf16) {
    u16x16 h;
    memcpy(&h, bf16, sizeof h);
    return from_bits(__builtin_convertvector(h, i32) << 16);
}

inline void store(uint16_t* bf16, f32 v) {
    for (int i = 0; i < kLanes; ++i) bf16[i] = float_to_bf16(v[i]);
}

inline void store_codes(int8_t* p, i32 v) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(v[i]);
}

// Exponent and mantissa are moved into place; the multiplication restores the bias and normalises subnormals.
inline f32 load_f16(const uint16_t* f16) {
    u16x16 h;
    memcpy(&h, f16, sizeof h);
    i32 wide = __builtin_convertvector(h, i32);
    f32 magnitude = from_bits((wide & 0x7fff) << 13) * 0x1p112f;
    i32 special = (wide & 0x7c00) == 0x7c00 ? ((wide & 0x7fff) << 13) | 0x7f800000 : bits(magnitude);
    return from_bits(special | ((wide & 0x8000) << 16));
}

// Lanes are folded in halves, 16 to 8 to 4 to 2 to 1: the one order of every horizontal sum.
inline float reduce_add(f32 v) {
    float lanes[kLanes];
    store(lanes, v);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}
inline void reduce_add4(f32 a, f32 b, f32 c, f32 d, float* out) {
    out[0] = reduce_add(a), out[1] = reduce_add(b), out[2] = reduce_add(c), out[3] = reduce_add(d);
}
inline float reduce_max(f32 v) {
    float best = v[0];
    for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
    return best;
}
inline int32_t reduce_max(i32 v) {
    int32_t best = v[0];
    for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
    return best;
}

// One stage of a Hadamard butterfly inside sixteen lanes: i and i ^ kStride become a + b and a - b.
template <int kStride>
inline f32 butterfly(f32 v) {
    float lanes[kLanes], out[kLanes];
    store(lanes, v);
    for (int i = 0; i < kLanes; ++i)
        out[i] = i & kStride ? lanes[i ^ kStride] - lanes[i] : lanes[i] + lanes[i ^ kStride];
    return load(out);
}

// Sixteen rows of sixteen floats, rows and columns exchanged.
inline void transpose(f32 (&r)[16]) {
    float square[16][16], flipped[16][16];
    memcpy(square, r, sizeof square);
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) flipped[j][i] = square[i][j];
    memcpy(r, flipped, sizeof flipped);
}

// Eight activation codes of one row.
struct Codes8 {
    const int8_t* x;
};
inline Codes8 broadcast_codes(const int8_t* x) { return {x}; }

// Eight unsigned weight codes of each of sixteen rows, a byte each: k = 0..3 in `low`, 4..7 in `high`.
struct Bytes8 {
    i32 low, high;
};
inline Bytes8 split_nibbles(i32 chunk) { return {chunk & 0x0f0f0f0f, shift_right<4>(chunk) & 0x0f0f0f0f}; }
inline Bytes8 lookup(Bytes8 nibbles, const uint8_t (&table)[16]) {
    auto each = [&](i32 v) {
        u8x64 in = reinterpret_cast<u8x64>(v), out;
        for (int i = 0; i < 64; ++i) out[i] = table[in[i]];
        return reinterpret_cast<i32>(out);
    };
    return {each(nibbles.low), each(nibbles.high)};
}

// Four bytes of every lane against four codes, as two pairs of 16-bit products.
inline i32 dot4(i32 sum, i32 w, const int8_t* x) {
    i32 even = w & 0x00ff00ff, odd = shift_right<8>(w) & 0x00ff00ff;
#if defined(__SSE2__)
    const __m128i x_even =
        _mm_set1_epi32((x[0] & 0xffff) | static_cast<int32_t>(static_cast<uint32_t>(x[2]) << 16));
    const __m128i x_odd =
        _mm_set1_epi32((x[1] & 0xffff) | static_cast<int32_t>(static_cast<uint32_t>(x[3]) << 16));
    __m128i e[4], o[4], s[4];
    memcpy(e, &even, sizeof e);
    memcpy(o, &odd, sizeof o);
    memcpy(s, &sum, sizeof s);
    for (int i = 0; i < 4; ++i) {
        __m128i pairs = _mm_add_epi32(_mm_madd_epi16(e[i], x_even), _mm_madd_epi16(o[i], x_odd));
        s[i] = _mm_add_epi32(s[i], pairs);
    }
    memcpy(&sum, s, sizeof s);
    return sum;
#else
    return sum + (even & 0xffff) * x[0] + (odd & 0xffff) * x[1] + shift_right<16>(even) * x[2] +
           shift_right<16>(odd) * x[3];
#endif
}
inline i32 dot8(i32 sum, Bytes8 w, Codes8 c) { return dot4(dot4(sum, w.low, c.x), w.high, c.x + 4); }

// One table entry per lane: the nibble at bits 4*kSlice.
template <int kSlice>
inline f32 lookup_float(i32 chunk, const float (&table)[16]) {
    i32 index = shift_right<4 * kSlice>(chunk) & 15;
    f32 v;
    for (int i = 0; i < kLanes; ++i) v[i] = table[index[i]];
    return v;
}

}  // namespace qspec
