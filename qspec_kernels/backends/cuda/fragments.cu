// fragments: which elements the matrix instructions bring together. No op: it asks the hardware what kernels
// take for granted, and says nothing itself of where an element stands in its matrix; _fragments.py does.
//
// One warp a block, which writes 128 numbers, one for each register of each lane. Elements of an operand are
// counted from one: lane by lane, in a lane register by register, in a register from the lowest bits on.
//  - bits 16, 8, 4 (mma_bf16, mma_s8, mma_s4), a block for each element of A, the only one that is not zero:
//    which element of B it meets in each element of C; 0 where it meets none, -n where it meets n of them.
//  - bits 32 (load_matrices), one block: which word of those that lanes bring, four each; 0 where it is none.

struct Bf16 {
    using Sum = float;
    static constexpr int kBits = 16;
    DEVICE static u32 element(int number) { return float_to_bf16(int_to_float(number)); }
    DEVICE static void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        mma_bf16(c, a, b[0], b[1]);
    }
};
template <int kWidth>
struct Integers {
    using Sum = int;
    static constexpr int kBits = kWidth;
    DEVICE static u32 element(int number) { return number; }
    DEVICE static void multiply(int (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        if constexpr (kBits == 8)
            mma_s8(c, a, b[0], b[1]);
        else
            mma_s4(c, a, b[0], b[1]);
    }
};

// Elements of B are told apart by three digits of three bits, which every type has room for.
constexpr int kDigits = 3;

template <class Format>
DEVICE void pairs(int* out) {
    constexpr int kPer = 32 / Format::kBits;
    const int lane = thread_index(), one = block_x();
    u32 a[4];
#pragma unroll
    for (int r = 0; r < 4; ++r)
        a[r] = one / kPer == lane * 4 + r ? Format::element(1) << (one % kPer * Format::kBits) : 0;
    int met[4], number[4] = {1, 1, 1, 1};
    // first all of B is one, then each of its elements is a digit of its number
#pragma unroll
    for (int pass = 0; pass <= kDigits; ++pass) {
        u32 b[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 2 * kPer; ++i) {
            const int digit = pass == 0 ? 1 : (lane * 2 * kPer + i) >> (3 * (pass - 1)) & 7;
            b[i / kPer] |= Format::element(digit) << (i % kPer * Format::kBits);
        }
        typename Format::Sum c[4] = {0, 0, 0, 0};
        Format::multiply(c, a, b);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int sum = static_cast<int>(c[i]);
            if (pass == 0)
                met[i] = sum;
            else
                number[i] += sum << (3 * (pass - 1));
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) store_global(out + i, met[i] == 1 ? number[i] : -met[i]);
}

// No byte of a word may be taken for another.
DEVICE u32 name(int lane, int i) { return 0x80402000u | lane << 8 | i; }

DEVICE void words(int* out) {
    const int lane = thread_index();
    // rows lie in no order
    u32* row = reinterpret_cast<u32*>(shared_memory() + (lane * 7 + 3) % 32 * 16);
    for (int i = 0; i < 4; ++i) row[i] = name(lane, i);
    barrier();
    u32 r[4];
    load_matrices(r, row);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int from = r[i] >> 8 & 31, word = r[i] & 3;
        store_global(out + i, r[i] == name(from, word) ? 1 + from * 4 + word : 0);
    }
}

KERNEL(32, 1)
fragments(int* out, int bits) {
    out += (block_x() * 32 + thread_index()) * 4;
    // not by equality: that becomes a table of jumps, which tools that read machine code cannot follow
    if (bits & 16) pairs<Bf16>(out);
    if (bits & 8) pairs<Integers<8>>(out);
#if INT4
    if (bits & 4) pairs<Integers<4>>(out);
#endif
    if (bits & 32) words(out);
}
