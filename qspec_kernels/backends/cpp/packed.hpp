// The two 4-bit weight formats in tiles of sixteen rows, as the kernels read them.
//
// A chunk is 64 bytes: sixteen rows, eight k each. Byte j of row r holds k = j in its low nibble and k = 4 +
// j in its high one, so that one AND and one shift give VPDPBUSD its operands, and the 16-bit words of a row
// hold the pairs (0, 2), (4, 6), (1, 3), (5, 7) at bits 0, 4, 8, 12 for VDPBF16PS. The formats' files
// (formats/int4_tiles16.py, mxfp4_tiles16.py) define the order.
#pragma once

#include "simd.hpp"

namespace qspec {

// Symmetric codes -8..7, stored as code + 8; float16 scales.
struct Int4 {
    using Scale = uint16_t;
    static constexpr int kOffset = 8;
    static constexpr bool kFolds = false;
    static constexpr int kGroupChunks = 0;  // known at run time
    static constexpr float kValues[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

    static Bytes8 unsigned_codes(i32 chunk) { return split_nibbles(chunk); }
    static f32 scale(const Scale* p, const uint8_t*) { return load_f16(p); }
    static f32 integer_scale(const Scale* p, const uint8_t*) { return load_f16(p); }
};

// E2M1 codes; E8M0 scales 2^(E-127), 255 is NaN. The integer paths take twice the value plus 12, a byte from
// 0 to 24, and 2^(E-128) to make up for it.
struct Mxfp4 {
    using Scale = uint8_t;
    static constexpr int kOffset = 12;
    static constexpr bool kFolds = true;  // a scale is a power of two
    static constexpr int kGroupChunks = 4;
    static constexpr float kValues[16] = {0,     .5f,  1,  1.5f,  2,  3,  4,  6,
                                          -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    alignas(16) static constexpr uint8_t kBytes[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                       12, 11, 10, 9,  8,  6,  4,  0};

    static Bytes8 unsigned_codes(i32 chunk) { return lookup(split_nibbles(chunk), kBytes); }

    // The scales of sixteen rows of a block, whose codes begin at `chunks`.
    static f32 scale(const Scale* p, const uint8_t* chunks) { return scale_below(p, chunks, 127); }
    static f32 integer_scale(const Scale* p, const uint8_t* chunks) { return scale_below(p, chunks, 128); }

    // Of the rows of a block: 0 where all values are zeros.
    static i32 magnitudes(const uint8_t* chunks) {
        i32 largest = set1(0);
        for (int c = 0; c < kGroupChunks; ++c)
            largest = max(largest, bit_and(load_bits(chunks + c * 64), set1(0x77777777)));
        return largest;
    }
    // 2^(E - bias).
    static f32 scale_below(const Scale* p, const uint8_t* chunks, int32_t bias) {
        if (!all_between<2, 254>(p)) return rare_scale_below(p, chunks, bias);
        return from_bits(shift_left<23>(add(from_bytes(p), set1(127 - bias))));
    }
    // The scale of zeros is 2^-127, which is subnormal, and every product with it would cost Intel's cores
    // more than the whole block: 1 makes the same zeros of the rows' sums.
    static f32 rare_scale_below(const Scale* p, const uint8_t* chunks, int32_t bias) {
        const i32 e = from_bytes(p), value = bits(power_of_two(add(e, set1(-bias))));
        const i32 least = if_equal(magnitudes(chunks), set1(0), bits(set1(1.0f)), value);
        return from_bits(if_equal(e, set1(0), least, if_equal(e, set1(255), set1(0x7fc00000), value)));
    }
};

// A packed weight and how it is cut: `groups` scale groups of `group_chunks` chunks, the last one shorter.
template <class Format>
struct PackedMatrix {
    const uint8_t* data;
    const typename Format::Scale* scales;
    int64_t n, k, tiles, chunks, groups, group_chunks;

    PackedMatrix(const void* data, const void* scales, int64_t n, int64_t k, int64_t group_size)
        : data(static_cast<const uint8_t*>(data)),
          scales(static_cast<const typename Format::Scale*>(scales)),
          n(n),
          k(k),
          tiles((n + 15) / 16),
          groups((k + group_size - 1) / group_size),
          group_chunks((group_size + 7) / 8) {
        const int64_t padded = Format::kOffset == 12 ? (k + 31) / 32 * 32 : (k + 7) / 8 * 8;
        chunks = padded / 8;
    }
    const uint8_t* tile(int64_t t) const { return data + t * chunks * 64; }
    const typename Format::Scale* tile_scales(int64_t t) const { return scales + t * groups * 16; }
    int64_t group_end(int64_t g) const {
        return (g + 1) * group_chunks < chunks ? (g + 1) * group_chunks : chunks;
    }
    int64_t tile_bytes() const { return chunks * 64 + groups * 16 * static_cast<int64_t>(sizeof(*scales)); }
};

// The chunk to prefetch while `chunk` of several tiles side by side is used: behind the end of the tiles
// comes the begin of those that follow them.
inline int64_t ahead(int64_t chunk, int64_t chunks, int64_t tiles) {
    const int64_t next = chunk + 32;
    return next < chunks ? next : next + (tiles - 1) * chunks;
}

// Scales of a tile are a short stretch of a memory of their own, which the core's own prefetch hardly
// notices: with those of group g of tile t, asks for the same ones of the tiles that follow the `tiles` side
// by side.
template <class Format>
inline void prefetch_scales(const PackedMatrix<Format>& w, const typename Format::Scale* scales, int64_t t,
                            int64_t g, int64_t tiles) {
    __builtin_prefetch(scales + ((t + tiles) * w.groups + g) * 16, 0, 2);
}

}  // namespace qspec
