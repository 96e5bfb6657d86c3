// linear_mxfp4a8: MXFP4 weights, 8-bit activation codes with one scale per row; mma.m16n8k32.s8.
//
// Twice an E2M1 value is one of the integers 0, 1, 2, 3, 4, 6, 8, 12 and their negatives, looked up four at a
// time in registers; the scale 2^(E - 128) makes up for the factor. One instruction takes one block of 32.
// Formula, order and tiles: integer.cuh.

struct Mxfp4A8 {
    using X = s8;
    using Scale = u8;  // E8M0
    static constexpr bool kActGroups = false;
    static constexpr int kSteps = 2;

    DEVICE static int swizzle(int token) { return token & 7; }

    // 2^(e - 128): the first two are subnormal, 255 is NaN.
    DEVICE static float scale(u8 e) {
        const u32 bits = e < 2 ? 0x00200000u << e : (e - 1u) << 23;
        return as_float(e == 255 ? 0x7fc00000u : bits);
    }

    // Four codes, nibbles of the lower half of w: permute_bytes looks the magnitudes up in a table of the
    // positive and in one of the negative values, and takes each byte from the one that bit 3 of its code
    // says.
    DEVICE static u32 lookup(u32 magnitudes, u32 signs) {
        const u32 plus = permute_bytes(0x03020100u, 0x0c080604u, magnitudes);
        const u32 minus = permute_bytes(0xfdfeff00u, 0xf4f8fafcu, magnitudes);
        return permute_bytes(plus, minus, signs);
    }
    // Codes come in the order of the nibbles, which is that of features 4t, 4t + 16, 4t + 1, 4t + 17 in the
    // first register and the two that follow each in the second; `tokens` brings x into the same order.
    DEVICE static void weights(u32 (&a)[4], const Words4& words, int step) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const u32 w = words.word[2 * step + h];
            const u32 magnitudes = w & 0x77777777u, signs = ((w >> 1) & 0x44444444u) | 0x32103210u;
            a[h] = lookup(magnitudes & 0xffffu, signs & 0xffffu);
            a[2 + h] = lookup(magnitudes >> 16, signs >> 16);
        }
    }
    DEVICE static void tokens(u32 (&b)[2], const u32 (&x)[4], int step) {
        b[0] = permute_bytes(x[2 * step], x[2 * step + 1], 0x5140u);
        b[1] = permute_bytes(x[2 * step], x[2 * step + 1], 0x7362u);
    }
    DEVICE static void multiply(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_s8(c, a, b0, b1); }
    DEVICE static float number(int sum) { return sub(as_float(sum), 12582912.0f); }
    DEVICE static int whole(int sum) { return sum; }
};

KERNEL(kThreads, 1)
linear_mxfp4a8(float* out, const s8* x, const float* act_scales, const u8* data, const u8* scales,
               const float* bias, const float* residual, int m, int n, int k) {
    const Operands<Mxfp4A8> in = {x, act_scales, data, scales, m, n, k};
    IntegerLinear<Mxfp4A8>(in).run(out, bias, residual);
}
