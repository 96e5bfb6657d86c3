// linear_w4a8: int4 weights, 8-bit activation codes with one scale per row; mma.m16n8k32.s8.
//
// A nibble u = code + 8 with its top bit flipped is the code in two's complement, and in the upper half of a
// byte it is the signed byte 16 * code: four operations for the eight codes of a word, and no correction for
// the 8. A group's sum is 16 times too large and exact: at most 128 * 128 * 127 < 2^22 with GROUP = 128.
// Formula, order and tiles: integer.cuh.

struct Int4A8 {
    using X = s8;
    using Scale = u16;  // fp16
    static constexpr bool kActGroups = false;
    static constexpr int kSteps = 2;

    DEVICE static int swizzle(int token) { return token & 7; }
    DEVICE static float scale(u16 bits) { return half_to_float(bits); }

    // Features 32 step .. 32 step + 31 of rows g (registers 0, 2) and g + 8 (1, 3).
    DEVICE static void weights(u32 (&a)[4], const Words4& words, int step) {
        for (int h = 0; h < 2; ++h) {
            const u32 w = words.word[2 * step + h] ^ 0x88888888u;
            a[h] = (w << 4) & 0xf0f0f0f0u;
            a[2 + h] = w & 0xf0f0f0f0u;
        }
    }
    DEVICE static void tokens(u32 (&b)[2], const u32 (&x)[4], int step) {
        b[0] = x[2 * step];
        b[1] = x[2 * step + 1];
    }
    DEVICE static void multiply(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_s8(c, a, b0, b1); }
    // (f - 1.5 * 2^23) / 16, exactly
    DEVICE static float number(int sum) { return fused(as_float(sum), 0.0625f, -786432.0f); }
    DEVICE static int whole(int sum) { return sum >> 4; }
};

KERNEL(kThreads, 1)
linear_w4a8(float* out, const s8* x, const float* act_scales, const u8* data, const u16* scales,
            const float* bias, const float* residual, int m, int n, int k) {
    const Operands<Int4A8> in = {x, act_scales, data, scales, m, n, k};
    IntegerLinear<Int4A8>(in).run(out, bias, residual);
}
