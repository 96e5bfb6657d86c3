// linear_mxfp4a16: MXFP4 weights, bf16 activations; mma.m16n8k16.bf16.
//
// The bytes of the bf16 numbers are looked up in registers: low bytes hold the last mantissa bits, high bytes
// exponent and sign. No arithmetic, so no rounding and nothing that could flush a subnormal.
// Formula, order and tiles: float.cuh.

struct Mxfp4A16 {
    using X = u16;     // bf16
    using Scale = u8;  // E8M0
    static constexpr bool kActGroups = false;

    DEVICE static int swizzle(int token) { return (token & 3) << 1; }

    // 2^(e - 127): the first is subnormal, 255 is NaN.
    DEVICE static float scale(u8 e) {
        const u32 bits = e == 0 ? 0x00400000u : static_cast<u32>(e) << 23;
        return as_float(e == 255 ? 0x7fc00000u : bits);
    }

    // Words of rows g and g + 8. Nibbles 0, 2, 4, 6 are features 4t .. 4t + 3, the operand of the first
    // instruction; the others are those 16 further on, of the second. Features are taken in the same order of
    // x.
    DEVICE static void expand(u32 (&a)[2][4], u32 word0, u32 word1) {
        const u32 words[2] = {word0, word1};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const u32 magnitudes = words[h] & 0x77777777u;
            const u32 signs = ((words[h] >> 1) & 0x44444444u) | 0x32103210u;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const u32 four = magnitudes >> (16 * half) & 0xffffu, sign = signs >> (16 * half) & 0xffffu;
                const u32 low = permute_bytes(0xc0800000u, 0xc0804000u, four);
                const u32 plus = permute_bytes(0x3f3f3f00u, 0x40404040u, four);
                const u32 minus = permute_bytes(0xbfbfbf80u, 0xc0c0c0c0u, four);
                const u32 high = permute_bytes(plus, minus, sign);
                a[0][2 * half + h] = permute_bytes(low, high, 0x6240u);
                a[1][2 * half + h] = permute_bytes(low, high, 0x7351u);
            }
        }
    }
};

KERNEL(kThreads, 1)
linear_mxfp4a16(Out* out, const u16* x, const u8* data, const u8* scales, const float* bias,
                const Out* residual, int m, int n, int k) {
    const Operands<Mxfp4A16> in = {x, nullptr, data, scales, m, n, k};
    FloatLinear<Mxfp4A16>(in).run(out, bias, residual);
}
