// The instructions of AMX in plain C++, in place of those of amx_tiles.hpp: what the Intel Software
// Developer's Manual says of LDTILECFG, STTILECFG, TILELOADD, TILESTORED, TILEZERO, TILERELEASE, TDPBF16PS
// and TDPBSSD, and a trap where it says #UD. Registers and configuration belong to a thread, as they do in
// the CPU.
//
// Included by amx_tiles.hpp. `qspec_emulated_mutant` makes an instruction wrong, to see that a test would
// notice.
#pragma once

#include <string.h>

extern "C" {
__attribute__((visibility("default"), used)) inline int qspec_emulated_mutant = 0;
}

namespace qspec {

enum Mutant { kNone, kExchangedPairs, kMissingLastRow, kOrderByShape };

struct EmulatedTiles {
    bool configured;
    int rows[8], row_bytes[8];
    alignas(64) uint8_t data[8][16][64];
};
inline thread_local EmulatedTiles emulated;

inline void require(bool holds) {
    if (!holds) __builtin_trap();
}

inline void configure_tiles(const TileConfig& config) {
    require(config.palette == 1 && config.start_row == 0);
    for (int i = 8; i < 16; ++i) require(config.rows[i] == 0 && config.row_bytes[i] == 0);
    memset(&emulated, 0, sizeof(emulated));
    emulated.configured = true;
    for (int i = 0; i < 8; ++i) {
        emulated.rows[i] = config.rows[i];
        emulated.row_bytes[i] = config.row_bytes[i];
        require(config.rows[i] <= 16 && config.row_bytes[i] <= 64 && !config.rows[i] == !config.row_bytes[i]);
    }
}

inline void save_tiles(TileConfig& config) {
    memset(&config, 0, sizeof(config));
    config.palette = emulated.configured;
    for (int i = 0; i < 8; ++i) {
        config.rows[i] = static_cast<uint8_t>(emulated.rows[i]);
        config.row_bytes[i] = static_cast<uint16_t>(emulated.row_bytes[i]);
    }
}

inline void release_tiles() { memset(&emulated, 0, sizeof(emulated)); }

template <int kTile>
inline void zero_tile() {
    require(emulated.configured);
    memset(emulated.data[kTile], 0, sizeof(emulated.data[kTile]));
}

template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
    zero_tile<kTile>();
    require(emulated.rows[kTile] > 0);
    const int rows = emulated.rows[kTile] - (qspec_emulated_mutant == kMissingLastRow);
    for (int i = 0; i < rows; ++i)
        memcpy(emulated.data[kTile][i], static_cast<const char*>(from) + i * stride,
               emulated.row_bytes[kTile]);
}

template <int kTile>
inline void store_tile(void* to, int64_t stride) {
    require(emulated.configured && emulated.rows[kTile] > 0);
    for (int i = 0; i < emulated.rows[kTile]; ++i)
        memcpy(static_cast<char*>(to) + i * stride, emulated.data[kTile][i], emulated.row_bytes[kTile]);
}

inline void require_operands(int sum, int first, int second) {
    require(emulated.configured && sum != first && sum != second && first != second);
    require(emulated.rows[sum] == emulated.rows[first] &&
            emulated.row_bytes[sum] == emulated.row_bytes[second]);
    require(emulated.row_bytes[first] == 4 * emulated.rows[second] && emulated.rows[first] > 0);
    require(emulated.row_bytes[first] % 4 == 0 && emulated.row_bytes[second] % 4 == 0);
}

inline f32 even_values(i32 pairs) { return from_bits(shift_left<16>(pairs)); }
inline f32 odd_values(i32 pairs) { return from_bits(bit_and(pairs, set1(int32_t(0xffff0000)))); }

// Sixteen columns at once; those that do not exist are zeros. A function of its own, so that the compiler
// moves no arithmetic out of the float mode of the call.
__attribute__((noinline)) inline void add_bf16_products(int sum, int first, int second) {
    const bool exchanged = qspec_emulated_mutant == kExchangedPairs;
    const bool apart =
        qspec_emulated_mutant == kOrderByShape && (emulated.rows[sum] < 16 || emulated.row_bytes[sum] < 64);
    for (int m = 0; m < emulated.rows[sum]; ++m) {
        f32 even = zero(), odd = zero();
        for (int k = 0; k < emulated.rows[second]; ++k) {
            int32_t pair;
            memcpy(&pair, emulated.data[first][m] + 4 * k, 4);
            const i32 others = load_bits(emulated.data[second][k]);
            even = fma(even_values(set1(pair)), exchanged ? odd_values(others) : even_values(others), even);
            odd = fma(odd_values(set1(pair)), exchanged ? even_values(others) : odd_values(others), odd);
        }
        const f32 before = from_bits(load_bits(emulated.data[sum][m]));
        const f32 after = apart ? add(add(before, even), odd) : add(before, add(even, odd));
        store_bits(emulated.data[sum][m], bits(after));
    }
}

// Denormals are zeros, before and after; rounding is to nearest even; MXCSR has no say.
template <int kSum, int kFirst, int kSecond>
inline void dot_bf16_tiles() {
    require_operands(kSum, kFirst, kSecond);
    const uint32_t mode = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(0x9fc0);
    add_bf16_products(kSum, kFirst, kSecond);
    __builtin_ia32_ldmxcsr(mode);
}

template <int kSum, int kFirst, int kSecond>
inline void dot_byte_tiles() {
    require_operands(kSum, kFirst, kSecond);
    const int exchanged = qspec_emulated_mutant == kExchangedPairs;
    for (int m = 0; m < emulated.rows[kSum]; ++m) {
        uint32_t sums[16];
        memcpy(sums, emulated.data[kSum][m], 64);
        for (int k = 0; k < emulated.row_bytes[kFirst]; ++k) {
            const int32_t value = static_cast<int8_t>(emulated.data[kFirst][m][k]);
            for (int n = 0; n < emulated.row_bytes[kSum] / 4; ++n)
                sums[n] +=
                    value * static_cast<int8_t>(emulated.data[kSecond][k / 4][4 * n + (k % 4 ^ exchanged)]);
        }
        memcpy(emulated.data[kSum][m], sums, 64);
    }
}

}  // namespace qspec

// Whether the calling thread holds tile registers.
extern "C" __attribute__((visibility("default"), used)) inline int qspec_emulated_in_use() {
    return qspec::emulated.configured;
}
