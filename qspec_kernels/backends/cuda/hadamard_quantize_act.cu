// hadamard_quantize_act: rotate blocks of a row by kron(H_m, H_S) / sqrt(m S), then quantise the whole row.
//
// A block of threads takes one row, held in float32. H_S (Sylvester) goes bit by bit over the feature's
// index, up to five bits a pass: a thread takes the 2^bits features that differ in those bits into registers,
// does their butterflies there and puts them back. So a row of 8192 crosses shared memory twice, and no
// shuffle is needed, each of which would cost as much as reading an element. H_m then adds whole parts, j = 0
// upwards, with the signs of a given matrix. The last stage leaves its values in registers, where absmax,
// scale and codes are made. Strides ascend and sums have one order: the same bits as every other backend.
//
// For bf16 input the rotated row is rounded to bf16, as the unfused op would store it. scale = absmax * clip
// / qmax, code = clamp(rint(x / scale), -qmax, qmax), the quotient rounded before rint is; a zero group has
// scale 0, one with a NaN scale NaN, and both have codes 0.
//
// Constants: THREADS, WIDTH (of a row), BLOCK (of a rotation), BASE (m), GROUP_SIZE, BF16, ALIGNED (whether
// rows of x are made of whole 16 bytes).

#if BF16
typedef u16 X;
DEVICE float widen(X v) { return bf16_to_float(v); }
DEVICE float rounded(float v) { return bf16_to_float(float_to_bf16(v)); }
#else
typedef float X;
DEVICE float widen(X v) { return v; }
DEVICE float rounded(float v) { return v; }
#endif

DEVICE constexpr int log2(int n) { return n <= 1 ? 0 : 1 + log2(n / 2); }

constexpr int kSylvester = BLOCK / BASE;
constexpr int kBits = log2(kSylvester);
constexpr int kPasses = kBits == 0 ? 1 : (kBits + 4) / 5;
constexpr int kGroups = (WIDTH + GROUP_SIZE - 1) / GROUP_SIZE;
constexpr int kWarps = THREADS / 32;
constexpr int kValues = (WIDTH + 31) / 32 * 32;
constexpr int kSignWords = (BASE + 31) / 32;
constexpr int kFours = BASE > 1 ? BASE / 4 : 1;  // rows of H_m are summed four at a time

// Bits of pass `pass`, spread evenly, and of all passes before it.
DEVICE constexpr int bits_of(int pass) { return kBits / kPasses + (pass < kBits % kPasses ? 1 : 0); }
DEVICE constexpr int bits_before(int pass) {
    return pass == 0 ? 0 : bits_before(pass - 1) + bits_of(pass - 1);
}

// What a thread holds at the end: kItems times kTaken values.
constexpr int kTaken = BASE > 1 ? 4 : 1 << bits_of(kPasses - 1);
constexpr int kItems = (WIDTH / kTaken + THREADS - 1) / THREADS;

DEVICE float* values() { return reinterpret_cast<float*>(shared_memory()); }
DEVICE u32* signs() { return reinterpret_cast<u32*>(values() + kValues); }
DEVICE u32* maxima() { return signs() + (BASE > 1 ? BASE * kSignWords : 0); }

// Where feature e lies among the values: chunks of four are exchanged within 32 so that neither the first
// pass, whose threads stand 2^bits features apart, nor the second meets in few banks.
DEVICE constexpr u32 place(u32 e) {
    const u32 chunk = e / 4;
    return (chunk ^ (chunk >> 3 & 7) ^ (chunk >> 4 & 4)) * 4 + e % 4;
}
// The same of first + offset, whose bits lie apart: places are linear over exclusive or, and only the bits of
// a chunk's number within its line can meet. With a constant offset that leaves eight addresses to compute.
DEVICE u32 place(u32 first, u32 offset) {
    const u32 to = place(offset);
    return (place(first) ^ (to & 28)) + (to & ~28u);
}

// First feature of an item of a pass; the others follow at distances of 1 << bits_before(pass).
template <int kPass>
DEVICE int first_feature(int item) {
    constexpr int kBefore = bits_before(kPass);
    return (item >> kBefore << (kBefore + bits_of(kPass))) + (item & ((1 << kBefore) - 1));
}

template <int kCount>
DEVICE void load_features(float (&v)[kCount], const X* x) {
    constexpr int kPer = 16 / sizeof(X);
    if constexpr (ALIGNED && kCount % kPer == 0) {
#pragma unroll
        for (int i = 0; i < kCount / kPer; ++i) {
            const Words4 words = load_global(reinterpret_cast<const Words4*>(x) + i);
#pragma unroll
            for (int j = 0; j < kPer; ++j) {
                const u32 word = words.word[j * sizeof(X) / 4];
                v[i * kPer + j] = as_float(BF16 ? (j % 2 ? word & 0xffff0000u : word << 16) : word);
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) v[i] = widen(load_global(x + i));
    }
}

// One item of a pass: butterflies over its bits, lowest first.
template <int kPass>
DEVICE void butterflies(float (&v)[1 << bits_of(kPass)], const X* x, int item) {
    constexpr int kCount = 1 << bits_of(kPass), kStep = 1 << bits_before(kPass);
    const int first = first_feature<kPass>(item);
    if constexpr (kPass == 0) {
        load_features(v, x + first);
    } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) v[i] = values()[place(first, i * kStep)];
    }
#pragma unroll
    for (int stride = 1; stride < kCount; stride *= 2)
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            if ((i & stride) == 0) {
                const float a = v[i], b = v[i + stride];
                v[i] = add(a, b);
                v[i + stride] = sub(a, b);
            }
}

// Passes kPass .. kEnd - 1, back into shared memory.
template <int kPass, int kEnd>
DEVICE void passes(const X* x) {
    if constexpr (kPass < kEnd) {
        constexpr int kCount = 1 << bits_of(kPass), kStep = 1 << bits_before(kPass);
        for (int item = thread_index(); item < WIDTH / kCount; item += THREADS) {
            float v[kCount];
            butterflies<kPass>(v, x, item);
            const int first = first_feature<kPass>(item);
            if constexpr (kStep == 1 && kCount % 4 == 0) {
                // whole chunks: the features are neighbours, and fours of bytes would meet in eight banks
#pragma unroll
                for (int i = 0; i < kCount; i += 4)
                    *reinterpret_cast<Words4*>(values() + place(first, i)) = {
                        {as_bits(v[i]), as_bits(v[i + 1]), as_bits(v[i + 2]), as_bits(v[i + 3])}};
            } else {
#pragma unroll
                for (int i = 0; i < kCount; ++i) values()[place(first, i * kStep)] = v[i];
            }
        }
        barrier();  // the next stage reads what others have written
        passes<kPass + 1, kEnd>(x);
    }
}

// The signs of H_m as bits, those of a column j side by side: bit i of the words of j is set where H[i, j] <
// 0.
DEVICE void copy_signs(const u32* table) {
    for (int w = thread_index(); w < BASE * kSignWords; w += THREADS) signs()[w] = load_global(table + w);
}

// Item of the last stage for BASE > 1: four rows i of H_m at one place of their parts.
struct Mix {
    int part, row;  // first feature of part 0 at that place; first of the four rows

    DEVICE explicit Mix(int item) {
        const int at = item % kSylvester, rest = item / kSylvester;
        row = rest % kFours * 4;
        part = rest / kFours * BLOCK + at;
    }
    DEVICE void sum(float (&v)[kTaken]) const {
#pragma unroll
        for (int i = 0; i < kTaken; ++i) v[i] = 0.0f;
#pragma unroll 4  // unrolled whole it is most of 8000 instructions for m = 28
        for (int j = 0; j < BASE; ++j) {
            const u32 x = as_bits(values()[place(part + j * kSylvester)]);
            const u32 bits = signs()[j * kSignWords + row / 32] >> (row % 32);
#pragma unroll
            for (int i = 0; i < kTaken; ++i) v[i] = add(v[i], as_float(x ^ (bits >> i << 31)));
        }
    }
};

// One item of the last stage: of H_m, or of the last pass where m = 1.
template <int kBase>
DEVICE void last_stage(float (&v)[kTaken], const X* x, int item) {
    if constexpr (kBase > 1) {
        Mix(item).sum(v);
    } else {
        butterflies<kPasses - kBase>(v, x, item);
    }
}

// Whether a row has no such item; where threads have equally many there is nothing to ask.
DEVICE bool beyond(int item) { return WIDTH / kTaken % THREADS != 0 && item >= WIDTH / kTaken; }

// Feature of the i-th value of such an item.
DEVICE int final_feature(int item, int i) {
    if constexpr (BASE > 1) {
        const Mix mix(item);
        return mix.part + (mix.row + i) * kSylvester;
    } else {
        return first_feature<kPasses - 1>(item) + (i << bits_before(kPasses - 1));
    }
}

DEVICE u32 warp_maximum(u32 largest) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        const u32 other = shuffle_xor(largest, mask);
        largest = largest > other ? largest : other;
    }
    return largest;
}
// Scale of a group from the bits of its largest magnitude: for these, integers order as floats do, NaN on
// top.
DEVICE float scale_of(u32 largest, float clip, float qmax) {
    const float scale = divide(mul(as_float(largest), clip), qmax);
    return scale > 0 ? scale : scale == 0 ? 0.0f : as_float(0x7fc00000u);
}
DEVICE s8 code_of(float v, float scale, float qmax) {
    if (!(scale > 0)) return 0;
    float q = divide(v, scale);
    if (q != q) q = 0.0f;
    q = q > qmax ? qmax : q < -qmax ? -qmax : q;
    return static_cast<s8>(round_to_int(q));
}
// The same code in seven instructions, where `is_plain`: the quotient by the reciprocal, corrected once by
// what is left of v. That may round it to a neighbour of what division gives, but not where rint then tells
// them apart; docs/explanation/gpu_hadamard.md has the proof.
DEVICE s8 plain_code_of(float v, float scale, float reciprocal, float qmax) {
    float q = mul(v, reciprocal);
    q = fused(fused(-q, scale, v), reciprocal, q);
    // behind 1.5 * 2^23 there is no room for fractions: the sum is rounded to even, its low bits are the code
    return static_cast<s8>(as_bits(add(minimum(maximum(q, -qmax), qmax), 12582912.0f)));
}
// Whether nothing of that under- or overflows, for a group of that largest magnitude.
DEVICE bool is_plain(u32 largest, float scale) {
    return scale >= 0x1p-100f && scale <= 0x1p100f && as_float(largest) <= mul(scale, 1024.0f);
}
DEVICE u32 magnitude(float v) { return as_bits(v) & 0x7fffffffu; }

// 64 registers a thread, so that there are rows to go on with while one waits at a barrier
KERNEL(THREADS, 1024 / THREADS)
hadamard_quantize_act(s8* codes, float* scales, const X* x, const u32* table, float factor, float clip,
                      float qmax) {
    const i64 row = block_x();
    x += row * WIDTH;
    codes += row * WIDTH;
    if (BASE > 1) copy_signs(table);
    passes<0, (BASE > 1 ? kPasses : kPasses - 1)>(x);

    float own[kItems][kTaken];
    u32 largest = 0;
#pragma unroll
    for (int t = 0; t < kItems; ++t) {
        const int item = thread_index() + t * THREADS;
        if (beyond(item)) break;
        last_stage<BASE>(own[t], x, item);
#pragma unroll
        for (int i = 0; i < kTaken; ++i) {
            own[t][i] = rounded(mul(own[t][i], factor));
            const u32 m = magnitude(own[t][i]);
            largest = largest > m ? largest : m;
        }
    }
    const int lane = thread_index() % 32, warp = thread_index() / 32;
    if constexpr (kGroups == 1) {
        largest = warp_maximum(largest);
        if (lane == 0) maxima()[warp] = largest;
        barrier();  // the maxima of all warps are there
        for (int w = 0; w < kWarps; ++w) largest = largest > maxima()[w] ? largest : maxima()[w];
        const float scale = scale_of(largest, clip, qmax);
        if (thread_index() == 0) store_global(scales + row, scale);
        if (is_plain(largest, scale)) {
            const float reciprocal = divide(1.0f, scale);
#pragma unroll
            for (int t = 0; t < kItems; ++t) {
                const int item = thread_index() + t * THREADS;
                if (beyond(item)) break;
#pragma unroll
                for (int i = 0; i < kTaken; ++i)
                    store_global(codes + final_feature(item, i),
                                 plain_code_of(own[t][i], scale, reciprocal, qmax));
            }
            return;
        }
    }
    // groups of a row, and a row of one group whose scale is not plain
    barrier();  // all have read what the last stage overwrites
#pragma unroll
    for (int t = 0; t < kItems; ++t) {
        const int item = thread_index() + t * THREADS;
        if (beyond(item)) break;
#pragma unroll
        for (int i = 0; i < kTaken; ++i) values()[place(final_feature(item, i))] = own[t][i];
    }
    barrier();  // the rotated row is there
    for (int g = warp; g < kGroups; g += kWarps) {
        const int end = (g + 1) * GROUP_SIZE < WIDTH ? (g + 1) * GROUP_SIZE : WIDTH;
        largest = 0;
#pragma unroll kGroups == 1 ? 1 : 4
        for (int e = g * GROUP_SIZE + lane; e < end; e += 32) {
            const u32 m = magnitude(values()[place(e)]);
            largest = largest > m ? largest : m;
        }
        largest = warp_maximum(largest);
        const float scale = scale_of(largest, clip, qmax), reciprocal = divide(1.0f, scale);
        const bool plain = is_plain(largest, scale);
        if (lane == 0) store_global(scales + row * kGroups + g, scale);
#pragma unroll kGroups == 1 ? 1 : 4
        for (int e = g * GROUP_SIZE + lane; e < end; e += 32) {
            const float v = values()[place(e)];
            store_global(codes + e,
                         plain ? plain_code_of(v, scale, reciprocal, qmax) : code_of(v, scale, qmax));
        }
    }
}
