// Linears of 4-bit weights and integer activations, exact in integers inside a scale group:
//
//     t_g       = float(sum over k in g of wcode[n, k] * xcode[m, k]) * (wscale[n, g] * xscale[m, g])
//     out[m, n] = ((t_0 + t_1) + t_2) + ... (+ bias[n]), then (+ residual[m, n]);
//
// each step rounded, nothing fused: the same bits as every other backend, and so the same whatever the tile.
// Warps that share K do not add partial sums, which would change the order: they leave the terms t_g of a
// slab in shared memory, and threads that own outputs add them in order while the next slab is computed. One
// barrier a slab serves the ring and the terms, of which there are therefore two sets.
//
// A Format adds to those of linear.cuh: kSteps, matrix instructions per 64 features; weights and tokens,
// their operands; multiply; and, for kMagic + sum as an accumulator holds it, number: the group's sum as a
// float. |sum| < 2^22, so that kMagic + sum read as a float is 1.5 * 2^23 + sum, exactly, and no conversion
// is needed. Where rows have one scale the accumulator holds the sum alone; whole makes it the row's.

constexpr int kMagic = 0x4b400000;  // 1.5 * 2^23 = 12582912 as a float

template <class Format>
struct IntegerLinear {
    using B = Buffer<Format>;
    static constexpr int kTermUnits = WARPS_K * kUnits;

    const Operands<Format>& in;
    const Place place;
    const int groups;
    int sums[TOKEN_TILES][4];
    float totals[kOwned];
    float act_scales[TOKEN_TILES][2];  // of the tokens of this lane's accumulators

    DEVICE explicit IntegerLinear(const Operands<Format>& in) : in(in), groups(ceil_div(in.k, kGroup)) {
#pragma unroll
        for (int j = 0; j < kOwned; ++j) totals[j] = 0.0f;
#pragma unroll
        for (int nt = 0; nt < TOKEN_TILES; ++nt)
            for (int i = 0; i < 2; ++i) {
                const int token = place.token + nt * 8 + place.lane % 4 * 2 + i;
                const bool read = !Format::kActGroups && token < in.m;
                act_scales[nt][i] = read ? load_global(in.act_scales + token) : 0.0f;
            }
        clear_sums();
    }
    DEVICE void clear_sums() {
#pragma unroll
        for (int nt = 0; nt < TOKEN_TILES; ++nt)
            for (int i = 0; i < 4; ++i) sums[nt][i] = GROUP == 0 ? 0 : kMagic;
    }
    DEVICE float act_scale(const u8* buffer, int unit, int nt, int i) const {
        if (!Format::kActGroups) return act_scales[nt][i];
        const float* staged = reinterpret_cast<const float*>(buffer + B::kActScales);
        return staged[(place.warp_k * kUnits + unit) * kTokens + nt * 8 + place.lane % 4 * 2 + i];
    }
    // The terms of a slab, [unit, output].
    DEVICE float* terms(int step) const {
        float* both = reinterpret_cast<float*>(shared_memory() + STAGES * B::kBytes);
        return both + (step & 1) * kTermUnits * kOutputs;
    }

    DEVICE void use_slab(int step, const u8* buffer) {
        if (WARPS_K > 1 && GROUP != 0 && step > 0) add_terms(step - 1);
        if (step * kSlab + place.warp_k * kStage >= in.k) return;
#pragma unroll
        for (int block = 0; block < 2; ++block) {
            const Words4 words = weight_words<Format>(buffer, place, block);
            u32 x[TOKEN_TILES][4];
#pragma unroll
            for (int nt = 0; nt < TOKEN_TILES; ++nt) {
                const int token = nt * 8 + place.lane % 8;
                const int chunk = place.warp_k * (kStage / 16) + block * 4 + place.lane / 8;
                load_matrices(x[nt], buffer + token * B::kRow + (chunk ^ Format::swizzle(token)) * 16);
            }
#pragma unroll
            for (int s = 0; s < Format::kSteps; ++s) {
                u32 a[4], b[2];
                Format::weights(a, words, s);
#pragma unroll
                for (int nt = 0; nt < TOKEN_TILES; ++nt) {
                    Format::tokens(b, x[nt], s);
                    Format::multiply(sums[nt], a, b[0], b[1]);
                }
                const int done = block * 64 + (s + 1) * (64 / Format::kSteps);
                if (GROUP != 0 && done % kGroup == 0) end_group(step, buffer, done / kGroup - 1);
            }
        }
    }

    // The terms of a group: added where this warp has all of K, else left for those who add in order.
    DEVICE void end_group(int step, const u8* buffer, int unit) {
        const int of_slab = place.warp_k * kUnits + unit;
        if (step * kTermUnits + of_slab < groups) {
            float* to = terms(step) + of_slab * kOutputs;
            const float scales[2] = {weight_scale<Format>(buffer, place, unit, place.lane / 4),
                                     weight_scale<Format>(buffer, place, unit, place.lane / 4 + 8)};
#pragma unroll
            for (int nt = 0; nt < TOKEN_TILES; ++nt) {
                Words4 term;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float scale = mul(scales[i / 2], act_scale(buffer, unit, nt, i % 2));
                    const float t = mul(Format::number(sums[nt][i]), scale);
                    if (WARPS_K == 1) totals[nt * 4 + i] = add(totals[nt * 4 + i], t);
                    term.word[i] = as_bits(t);
                }
                if (WARPS_K > 1) *reinterpret_cast<Words4*>(to + accumulators(place, nt)) = term;
            }
        }
        clear_sums();
    }

    DEVICE void add_terms(int step) {
        const float* from = terms(step) + thread_index();
        const int left = groups - step * kTermUnits;
        const int count = left < kTermUnits ? left : kTermUnits;
        if (!owns()) return;
        if (count == kTermUnits) {
#pragma unroll
            for (int unit = 0; unit < kTermUnits; ++unit) add_unit(from + unit * kOutputs);
        } else {
            for (int unit = 0; unit < count; ++unit) add_unit(from + unit * kOutputs);
        }
    }

    DEVICE void add_unit(const float* from) {
#pragma unroll
        for (int j = 0; j < kOwned; ++j) totals[j] = add(totals[j], from[j * kThreads]);
    }

    // One scale per row: the integers of all warps are added, and there is one term.
    DEVICE void end_row() {
        int* shared = reinterpret_cast<int*>(terms(0));
        if (WARPS_K > 1) {
#pragma unroll
            for (int nt = 0; nt < TOKEN_TILES; ++nt)
                for (int i = 0; i < 4; ++i)
                    shared[place.warp_k * kOutputs + accumulators(place, nt) + i] = sums[nt][i];
            barrier();  // the sums of all warps are there
        }
        for_owned(place, in.m, in.n, [&](int j, int row, int token) {
            int sum = WARPS_K == 1 ? sums[j / 4 % TOKEN_TILES][j % 4] : 0;
            for (int w = 0; WARPS_K > 1 && w < WARPS_K; ++w)
                sum += shared[w * kOutputs + thread_index() + j * kThreads];
            const float weight = Format::scale(load_global(in.scales + row));
            const float scale = mul(weight, load_global(in.act_scales + token));
            totals[j] = add(0.0f, mul(int_to_float(Format::whole(sum)), scale));
        });
    }

    DEVICE void run(float* out, const float* bias, const float* residual) {
        const int steps = ceil_div(in.k, kSlab);
        stream_slabs(
            in, place, steps, [](int step) { return step * kSlab; },
            [&](int step, const u8* buffer) { use_slab(step, buffer); });
        if (GROUP == 0) {
            end_row();
        } else if (WARPS_K > 1) {
            barrier();  // the last terms are there
            add_terms(steps - 1);
        }
        for_owned(place, in.m, in.n, [&](int j, int row, int token) {
            const i64 at = static_cast<i64>(token) * in.n + row;
            float value = totals[j];
            if (bias) value = add(value, load_global(bias + row));
            if (residual) value = add(load_global(residual + at), value);
            store_global(out + at, value);
        });
    }
};
