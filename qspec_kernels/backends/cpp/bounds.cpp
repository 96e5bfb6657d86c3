// What bounds every other kernel, to be measured beside them: reading memory by a plain loop, and multiplying
// and adding in registers with the instructions that the linears use.

#include "amx_tiles.hpp"
#include "bf16_weights.hpp"
#include "program.hpp"
#include "simd.hpp"

namespace {

using namespace qspec;

constexpr int64_t kSlice = 1 << 20;  // bytes of a task that reads
// Enough to keep two units busy, few enough for the registers.
constexpr int kChains = kDenseAccumulators < 16 ? kDenseAccumulators : 16;

// The compiler must take the value for new, or it would multiply once, before the loop.
#if defined(__AVX512F__)
template <class T>
inline void renew(T& v) {
    asm volatile("" : "+v"(v));
}
#elif defined(__AVX2__)
template <class T>
inline void renew(T& v) {
    asm volatile("" : "+x"(v.lo), "+x"(v.hi));
}
#else
template <class T>
inline void renew(T& v) {
    asm volatile("" : "+m"(v));
}
#endif
#if !defined(QSPEC_HAS_BF16_DOT)
inline void renew(Bf16Weights::Vector& v) {
    renew(v.even);
    renew(v.odd);
}
#endif
inline void renew(Bytes8& v) {
    renew(v.low);
    renew(v.high);
}

uint32_t sum_words(const char* data, int64_t bytes) {
    constexpr int kStreams = 4;
    constexpr int64_t kLine = 64;
    i32 sums[kStreams] = {set1(0), set1(0), set1(0), set1(0)};
    int64_t at = 0;
    for (; at + kStreams * kLine <= bytes; at += kStreams * kLine)
        for (int i = 0; i < kStreams; ++i) sums[i] = add(sums[i], load_bits(data + at + i * kLine));
    int32_t lanes[kLanes];
    store_bits(lanes, add(add(sums[0], sums[1]), add(sums[2], sums[3])));
    uint32_t total = 0;
    for (int32_t lane : lanes) total += static_cast<uint32_t>(lane);
    for (; at + 4 <= bytes; at += 4) {
        uint32_t word;
        memcpy(&word, data + at, 4);
        total += word;
    }
    return total;
}

// `iterations` times sums[i] = step(sums[i], w, x), in chains that do not wait for each other.
template <class Sum, class W, class X, class Step>
void compute(int64_t iterations, Sum start, W w, X x, const Step& step) {
    Sum sums[kChains];
    for (Sum& sum : sums) sum = start;
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
        for (int j = 0; j < kChains; ++j) {
            renew(w);
            sums[j] = step(sums[j], w, x);
        }
    }
    asm volatile("" : : "r"(&sums) : "memory");
}

#if defined(QSPEC_HAS_TILES)
// The four products of a linear's step, again and again.
template <class Tiles>
void compute_tiles(int64_t iterations) {
    const TileScope scope({kTileRows, 64, kTileRows});
    zero_sums();
    for_each_count<4>([](auto operand) { zero_tile<4 + decltype(operand)::value>(); });
    for (int64_t i = 0; i < iterations; ++i) {
        Tiles::template dot<0, 4, 6>();
        Tiles::template dot<1, 4, 7>();
        Tiles::template dot<2, 5, 6>();
        Tiles::template dot<3, 5, 7>();
    }
}
#endif

}  // namespace

// The sum of all 32-bit words, so that every byte is read and the caller can tell.
QSPEC_EXPORT int qspec_read_pass(uint32_t* checksum, const void* data, int64_t bytes, int64_t threads) {
    *checksum = 0;
    parallel_ranges((bytes + kSlice - 1) / kSlice, 1, threads, [&](int64_t begin, int64_t end, int64_t) {
        const int64_t from = begin * kSlice, to = end * kSlice < bytes ? end * kSlice : bytes;
        const uint32_t sum = sum_words(static_cast<const char*>(data) + from, to - from);
        __atomic_fetch_add(checksum, sum, __ATOMIC_RELAXED);
    });
    return kDone;
}

QSPEC_RECORDABLE(read_pass)

// kind: 0 float32, 1 BF16 products summed in float32, 2 bytes times bytes summed in int32. A multiplication
// and an addition are two operations.
QSPEC_EXPORT int qspec_compute_pass(int64_t* operations, int64_t kind, int64_t iterations, int64_t threads) {
    const int64_t tasks = threads < 1 ? 1 : threads;
#if defined(QSPEC_HAS_TILES)
    if (kind > 0) {
        const int64_t depth = kind == 1 ? 32 : 64;
        *operations = 2 * 4 * kSumLanes * depth * iterations * tasks;
        parallel_ranges(tasks, 1, threads, [&](int64_t begin, int64_t end, int64_t) {
            for (int64_t task = begin; task < end; ++task)
                kind == 1 ? compute_tiles<Bf16Tiles>(iterations) : compute_tiles<ByteTiles>(iterations);
        });
        return kDone;
    }
#endif
    const int64_t products = kind == 0 ? kLanes : kind == 1 ? 2 * kLanes : 8 * kLanes;
    *operations = 2 * products * kChains * iterations * tasks;
    parallel_ranges(tasks, 1, threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t task = begin; task < end; ++task) {
            if (kind == 0) {
                compute(iterations, zero(), set1(1e-9f), set1(1e-9f),
                        [](f32 sum, f32 w, f32 x) { return fma(w, x, sum); });
            } else if (kind == 1) {
                uint16_t weights[32];
                float ones[32];
                Bf16Weights::Element values[32];
                for (int i = 0; i < 32; ++i) weights[i] = float_to_bf16(ones[i] = 1.0f);
                Bf16Weights::arrange(ones, values, 32);
                compute(iterations, zero(), Bf16Weights::load_weights(weights), Bf16Weights::load_x(values),
                        [](f32 sum, const Bf16Weights::Vector& w, const Bf16Weights::Vector& x) {
                            return Bf16Weights::multiply_add(sum, w, x);
                        });
            } else {
                const int8_t codes[8] = {1, -1, 1, -1, 1, -1, 1, -1};
                compute(iterations, set1(int32_t{0}), split_nibbles(set1(int32_t{0x11111111})),
                        broadcast_codes(codes),
                        [](i32 sum, const Bytes8& w, const Codes8& x) { return dot8(sum, w, x); });
            }
        }
    });
    return kDone;
}

QSPEC_RECORDABLE(compute_pass)
