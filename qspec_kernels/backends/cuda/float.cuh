// Linears of 4-bit weights and bf16 activations: products are exact, sums are float32.
//
//     out[m, n] = sum over g of wscale[n, g] * (sum over k in g of wcode[n, k] * x[m, k])  (+ bias[n]),
//
// rounded to the output's type, then (+ residual[m, n]) in that type. K is cut into SPLIT interleaved parts,
// stage s of 128 features belonging to part s % SPLIT; a part is summed in order of K, the parts in order of
// their number. SPLIT follows from N and K alone, and the matrix instruction is one, so a row of the output
// never depends on how many rows there are. A block takes WARPS_K parts at a time, in SPLIT / WARPS_K rounds;
// at the end of a round, warps leave their part's sums in shared memory, where those who own outputs add them
// during the next: as the terms of integer.cuh.
//
// Constants besides those of linear.cuh: SPLIT, and BF16_OUT, whether out and residual are bf16 (else float).
// A Format adds to those of linear.cuh: expand, 32 features of 16 rows as operands of two instructions.

#if BF16_OUT
typedef u16 Out;
DEVICE float widen(Out v) { return bf16_to_float(v); }
DEVICE Out narrow(float v) { return float_to_bf16(v); }
#else
typedef float Out;
DEVICE float widen(Out v) { return v; }
DEVICE Out narrow(float v) { return v; }
#endif

template <class Format>
struct FloatLinear {
    using B = Buffer<Format>;

    const Operands<Format>& in;
    const Place place;
    const int steps_of_round;
    float sums[TOKEN_TILES][4];   // of a group
    float parts[TOKEN_TILES][4];  // of this warp's part of K
    float totals[kOwned];

    DEVICE explicit FloatLinear(const Operands<Format>& in)
        : in(in), steps_of_round(ceil_div(ceil_div(in.k, kStage), SPLIT)) {
#pragma unroll
        for (int j = 0; j < kOwned; ++j) totals[j] = 0.0f;
        clear(sums);
        clear(parts);
    }
    DEVICE static void clear(float (&values)[TOKEN_TILES][4]) {
#pragma unroll
        for (int nt = 0; nt < TOKEN_TILES; ++nt)
            for (int i = 0; i < 4; ++i) values[nt][i] = 0.0f;
    }
    DEVICE int start(int step) const {
        const int round = step / steps_of_round;
        return ((step - round * steps_of_round) * SPLIT + round * WARPS_K) * kStage;
    }
    // The sums of a round's parts, [part, output].
    DEVICE float* terms(int round) const {
        float* both = reinterpret_cast<float*>(shared_memory() + STAGES * B::kBytes);
        return both + (round & 1) * WARPS_K * kOutputs;
    }

    DEVICE void use_slab(int step, const u8* buffer) {
        const int round = step / steps_of_round, of_round = step - round * steps_of_round;
        if (WARPS_K > 1 && round > 0 && of_round == 0) add_terms(round - 1);
        if (start(step) + place.warp_k * kStage < in.k) multiply_slab(buffer);
        if (of_round == steps_of_round - 1) end_part(round);
    }

    DEVICE void multiply_slab(const u8* buffer) {
        // a lane's features of a row: 8 bytes out of each 32; half a chunk
        const int half = place.lane % 2 * 8, chunk = place.warp_k * (kStage / 8) + place.lane % 4 / 2;
#pragma unroll
        for (int block = 0; block < 2; ++block) {
            const Words4 words = weight_words<Format>(buffer, place, block);
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                u32 a[2][4];
                Format::expand(a, words.word[2 * c], words.word[2 * c + 1]);
#pragma unroll
                for (int q = 0; q < 2; ++q) {
                    const int sixteen = block * 4 + c * 2 + q;
#pragma unroll
                    for (int nt = 0; nt < TOKEN_TILES; ++nt) {
                        const int token = nt * 8 + place.lane / 4;
                        const int at = (chunk + 2 * sixteen) ^ Format::swizzle(token);
                        const u8* from = buffer + token * B::kRow + at * 16 + half;
                        const Words2 x = *reinterpret_cast<const Words2*>(from);
                        mma_bf16(sums[nt], a[q], x.word[0], x.word[1]);
                    }
                    if (GROUP != 0 && (sixteen + 1) * 16 % kGroup == 0)
                        end_group(buffer, (sixteen + 1) * 16 / kGroup - 1);
                }
            }
        }
    }

    DEVICE void end_group(const u8* buffer, int unit) {
        const float scales[2] = {weight_scale<Format>(buffer, place, unit, place.lane / 4),
                                 weight_scale<Format>(buffer, place, unit, place.lane / 4 + 8)};
#pragma unroll
        for (int nt = 0; nt < TOKEN_TILES; ++nt)
            for (int i = 0; i < 4; ++i) parts[nt][i] = fused(scales[i / 2], sums[nt][i], parts[nt][i]);
        clear(sums);
    }

    DEVICE void end_part(int round) {
        float (&part)[TOKEN_TILES][4] = GROUP == 0 ? sums : parts;
        float* to = terms(round) + place.warp_k * kOutputs;
#pragma unroll
        for (int nt = 0; nt < TOKEN_TILES; ++nt) {
            Words4 values;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (WARPS_K == 1) totals[nt * 4 + i] = add(totals[nt * 4 + i], part[nt][i]);
                values.word[i] = as_bits(part[nt][i]);
            }
            if (WARPS_K > 1) *reinterpret_cast<Words4*>(to + accumulators(place, nt)) = values;
        }
        clear(part);
    }

    DEVICE void add_terms(int round) {
        const float* from = terms(round) + thread_index();
        if (!owns()) return;
#pragma unroll
        for (int part = 0; part < WARPS_K; ++part)
#pragma unroll
            for (int j = 0; j < kOwned; ++j) totals[j] = add(totals[j], from[part * kOutputs + j * kThreads]);
    }

    DEVICE void run(Out* out, const float* bias, const Out* residual) {
        constexpr int kRounds = SPLIT / WARPS_K;
        stream_slabs(
            in, place, kRounds * steps_of_round, [&](int step) { return start(step); },
            [&](int step, const u8* buffer) { use_slab(step, buffer); });
        if (WARPS_K > 1) {
            barrier();  // the last sums are there
            add_terms(kRounds - 1);
        }
        for_owned(place, in.m, in.n, [&](int j, int row, int token) {
            const i64 at = static_cast<i64>(token) * in.n + row;
            float value = totals[j];
            if (GROUP == 0) value = mul(value, Format::scale(load_global(in.scales + row)));
            if (bias) value = add(value, load_global(bias + row));
            Out rounded = narrow(value);
            if (residual) rounded = narrow(add(widen(load_global(residual + at)), widen(rounded)));
            store_global(out + at, rounded);
        });
    }
};
