// linear_w4a4: int4 weights, 4-bit activation codes with scales per weight group; mma.m16n8k64.s4, which
// Ampere and Ada have and later architectures only imitate.
//
// A nibble u = code + 8 with its top bit flipped is the signed nibble `code`, so that a lane's four words are
// the operand itself. Activation codes come one a byte and are put into nibbles here, in the weights' order:
// features 4t .. 4t + 3 in the low nibbles of a register's bytes, those 16 further on in the high ones.
// Formula, order and tiles: integer.cuh.

struct Int4A4 {
    using X = s8;
    using Scale = u16;  // fp16
    static constexpr bool kActGroups = GROUP != 0;
    // an instruction spans 64 features; groups of 32 take two, each with half of x zero
    static constexpr int kSteps = GROUP == 32 ? 2 : 1;

    DEVICE static int swizzle(int token) { return token & 7; }
    DEVICE static float scale(u16 bits) { return half_to_float(bits); }

    DEVICE static void weights(u32 (&a)[4], const Words4& words, int) {
        for (int i = 0; i < 4; ++i) a[i] = words.word[i] ^ 0x88888888u;
    }
    DEVICE static void tokens(u32 (&b)[2], const u32 (&x)[4], int step) {
        for (int half = 0; half < 2; ++half) {
            const u32 nibbles = (x[2 * half] & 0x0f0f0f0fu) | ((x[2 * half + 1] << 4) & 0xf0f0f0f0u);
            b[half] = kSteps == 1 || step == half ? nibbles : 0;
        }
    }
    DEVICE static void multiply(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_s4(c, a, b0, b1); }
    DEVICE static float number(int sum) { return sub(as_float(sum), 12582912.0f); }
    DEVICE static int whole(int sum) { return sum; }
};

KERNEL(kThreads, 1)
linear_w4a4(float* out, const s8* x, const float* act_scales, const u8* data, const u16* scales,
            const float* bias, const float* residual, int m, int n, int k) {
    const Operands<Int4A4> in = {x, act_scales, data, scales, m, n, k};
    IntegerLinear<Int4A4>(in).run(out, bias, residual);
}
