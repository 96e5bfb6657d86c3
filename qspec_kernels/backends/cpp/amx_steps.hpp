// What the tile registers are fed with 4-bit weights (amx_packed.hpp): how a chunk is expanded to a second
// operand, how a row of x is arranged as a first one, and what a group's sum is worth.
#pragma once

#include "amx_tiles.hpp"
#include "bf16_weights.hpp"
#include "packed.hpp"

#if defined(QSPEC_HAS_TILES)

namespace qspec {

// Bytes: int8 codes of x times signed integer values, which for MXFP4 are doubled as in packed.hpp.
template <class FormatOf>
struct IntegerSteps {
    using Format = FormatOf;
    using Tiles = ByteTiles;
    using Element = int8_t;
    static constexpr int64_t kChunkBytes = 8;
    static constexpr bool kFolded = false;

    uint8_t table[16];

    IntegerSteps() {
        for (int i = 0; i < 16; ++i) {
            const float value = Format::kValues[i] * (Format::kOffset == 12 ? 2 : 1);
            table[i] = static_cast<uint8_t>(static_cast<int8_t>(value));
        }
    }
    void expand(const uint8_t* chunk, uint8_t* out) const {
        const Bytes8 values = lookup(split_nibbles(load_bits(chunk)), table);
        store_bits(out, values.low);
        store_bits(out + 64, values.high);
    }
    // A step of one row of x, `count` elements and zeros behind them.
    static void arrange(const int8_t* x, int64_t count, int64_t depth, uint8_t* out) {
        memcpy(out, x, count);
        memset(out + count, 0, depth * 8 - count);
    }
    static f32 weight_scale(const typename Format::Scale* p, const uint8_t* chunks) {
        return Format::integer_scale(p, chunks);
    }
    static f32 scaled(const int32_t* sums, f32 weight_scale, float x_scale) {
        return mul(to_float(load_bits(sums)), mul(weight_scale, set1(x_scale)));
    }
};

// BF16: a slice of a chunk is a pair of its k, (0, 2), (4, 6), (1, 3), (5, 7).
template <class FormatOf, class T>
struct FloatSteps {
    using Format = FormatOf;
    using Tiles = Bf16Tiles;
    using Element = T;
    static constexpr int64_t kChunkBytes = 16;
    static constexpr bool kFolded = false;

    i32 table;

    FloatSteps() {
        uint16_t entries[32];
        for (int i = 0; i < 32; ++i) entries[i] = float_to_bf16(Format::kValues[i % 16]);
        table = load_bits(entries);
    }
    void expand(const uint8_t* chunk, uint8_t* out) const {
        const i32 codes = load_bits(chunk);
        for_each_count<4>([&](auto slice) {
            constexpr int s = decltype(slice)::value;
            store_bits(out + s * 64, lookup_pairs<s>(codes, table));
        });
    }
    static void arrange(const T* x, int64_t count, int64_t depth, uint8_t* out) {
        uint16_t values[32] = {};
        Bf16Weights::arrange(x, values, count);
        const __m128i pairs = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        for (int64_t c = 0; c < depth; ++c) {
            const __m128i chunk = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + c * 8));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + c * 16), _mm_shuffle_epi8(chunk, pairs));
        }
    }
    static f32 weight_scale(const typename Format::Scale* p, const uint8_t* chunks) {
        return Format::scale(p, chunks);
    }
    static f32 scaled(const int32_t* sums, f32 weight_scale, float) {
        return mul(from_bits(load_bits(sums)), weight_scale);
    }
};

// BF16 with the scale of a group of 32 folded into the exponents, so that the sum of a group needs none and
// goes to the next one in its register: a power of two moves no rounding, so the bits are those of
// FloatSteps. Values have the largest exponents that there are, and the scale takes from them; subtraction
// that ends at 0 keeps zeros. Scales from 2^-63 to 2^63 fold, and those of zeros; a tile with others is left
// to FloatSteps.
template <class T>
struct FoldedSteps : FloatSteps<Mxfp4, T> {
    static constexpr bool kFolded = true;
    static constexpr int kLargest = 252;  // the E8M0 scale that takes nothing

    FoldedSteps() {
        uint16_t entries[32];
        for (int i = 0; i < 32; ++i) {
            const uint16_t value = float_to_bf16(Mxfp4::kValues[i % 16]);
            entries[i] = value & 0x7fff ? static_cast<uint16_t>(value + ((kLargest - 127) << 7)) : 0;
        }
        this->table = load_bits(entries);
    }
    // False where a scale does not fold.
    bool expand_group(const uint8_t* chunks, const uint8_t* scales, const uint8_t* next, uint8_t* out) const {
        const i32 less = taken(scales);
        for_each_count<Mxfp4::kGroupChunks>([&](auto chunk) {
            constexpr int c = decltype(chunk)::value;
            __builtin_prefetch(next + c * 64);
            const i32 codes = load_bits(chunks + c * 64);
            for_each_count<4>([&](auto slice) {
                constexpr int s = decltype(slice)::value;
                store_bits(out + c * 256 + s * 64,
                           _mm512_subs_epu16(lookup_pairs<s>(codes, this->table), less));
            });
        });
        return all_between<64, 190>(scales) || zeros_alone(chunks, scales);
    }

   private:
    // What the scale of each row takes from the exponents of a pair of values.
    static i32 taken(const uint8_t* scales) {
        const i32 e = from_bytes(scales);
        return _mm512_sub_epi16(_mm512_set1_epi16(kLargest << 7),
                                _mm512_or_si512(shift_left<7>(e), shift_left<23>(e)));
    }
    // Whether rows whose scales do not fold are zeros, which fold with any scale but NaN.
    static bool zeros_alone(const uint8_t* chunks, const uint8_t* scales) {
        const i32 e = from_bytes(scales), magnitudes = Mxfp4::magnitudes(chunks);
        const __mmask16 wide = _mm512_cmpgt_epu32_mask(add(e, set1(-64)), set1(190 - 64));
        const __mmask16 some = _mm512_test_epi32_mask(magnitudes, magnitudes);
        return (wide & (some | _mm512_cmpeq_epi32_mask(e, set1(255)))) == 0;
    }
};

}  // namespace qspec

#endif
