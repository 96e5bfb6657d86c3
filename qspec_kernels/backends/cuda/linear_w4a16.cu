// linear_w4a16: int4 weights, bf16 activations; mma.m16n8k16.bf16.
//
// A byte u = code + 8 under a byte 0x43 is the bf16 number 128 + u; one exact operation on two of them takes
// 136 away. Two codes that stand in neighbouring bytes become one register without a shift between them.
// Formula, order and tiles: float.cuh.

struct Int4A16 {
    using X = u16;      // bf16
    using Scale = u16;  // fp16
    static constexpr bool kActGroups = false;

    // pairs of chunks move together: a lane group reads two neighbouring ones
    DEVICE static int swizzle(int token) { return (token & 3) << 1; }
    DEVICE static float scale(u16 bits) { return half_to_float(bits); }

    DEVICE static u32 pair(u32 bytes, u32 selector) {
        return fma_bf16x2(permute_bytes(bytes, 0x43434343u, selector), 0x3f803f80u, 0xc308c308u);
    }
    // Words of rows g and g + 8. Low nibbles are features 4t .. 4t + 3, the operand of the first instruction;
    // high nibbles those 16 further on, of the second. Features are taken in the same order of x.
    DEVICE static void expand(u32 (&a)[2][4], u32 word0, u32 word1) {
        const u32 words[2] = {word0, word1};
#pragma unroll
        for (int h = 0; h < 2; ++h)
            for (int q = 0; q < 2; ++q) {
                const u32 bytes = (q == 0 ? words[h] : words[h] >> 4) & 0x0f0f0f0fu;
                a[q][h] = pair(bytes, 0x4140u);
                a[q][2 + h] = pair(bytes, 0x4342u);
            }
    }
};

KERNEL(kThreads, 1)
linear_w4a16(Out* out, const u16* x, const u8* data, const u16* scales, const float* bias,
             const Out* residual, int m, int n, int k) {
    const Operands<Int4A16> in = {x, nullptr, data, scales, m, n, k};
    FloatLinear<Int4A16>(in).run(out, bias, residual);
}
