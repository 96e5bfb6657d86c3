// What the linears share: how weights, activations and scales come into shared memory, and how the work is
// cut.
//
// A block makes 16 * WARPS_N outputs of 8 * TOKEN_TILES tokens. Weights are the 16-row operand of the matrix
// instruction and tokens its 8 columns, so that one token costs no more than eight. Warp (warp_n, warp_k) has
// row tile warp_n; of each slab of 128 * WARPS_K input features it takes 128. Slabs come through a ring of
// STAGES buffers, STAGES - 1 of them on their way while one is used.
//
// Weights lie in the order of formats/*_mma16.py: each lane copies 16 bytes and later reads the same 16,
// which are its own part of the operand. Rows of x are swizzled: chunk c of 16 bytes of token i lies at c ^
// Format::swizzle(i), for reads without bank conflicts.
//
// Constants of a compilation: TOKEN_TILES, WARPS_N, WARPS_K, STAGES, GROUP (32, 64 or 128; 0 for one scale
// per row) and ALIGNED (whether rows of x are made of whole 16 bytes).
//
// A Format has: X, the type of x in memory; Scale, and scale(), its value; kActGroups, whether activations
// have a scale per group; swizzle.

constexpr int kStage = 128;  // input features of a slab that a warp takes
constexpr int kSlab = kStage * WARPS_K;
constexpr int kWarps = WARPS_N * WARPS_K;
constexpr int kThreads = 32 * kWarps;
constexpr int kTokens = 8 * TOKEN_TILES;
constexpr int kGroup = GROUP == 0 ? kStage : GROUP;
constexpr int kUnits = kStage / kGroup;  // scale groups of a warp's part of a slab
// outputs of a block in the order of the accumulators: [row tile, token tile, lane, register]
constexpr int kOutputs = WARPS_N * TOKEN_TILES * 128;
constexpr int kOwned = (kOutputs + kThreads - 1) / kThreads;  // of which a thread sums up so many

DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }

template <class Format>
struct Operands {
    const typename Format::X* x;           // [m, k]
    const float* act_scales;               // [m, 1], or [m, groups] where kActGroups
    const u8* data;                        // [row tiles, blocks of 64, 512]
    const typename Format::Scale* scales;  // [groups, row tiles * 16]
    int m, n, k;
};

// The place of a thread in its block and of the block in the problem.
struct Place {
    int lane, warp, warp_n, warp_k, token, tile;

    DEVICE Place() {
        lane = thread_index() % 32;
        warp = thread_index() / 32;
        warp_n = warp / WARPS_K;
        warp_k = warp % WARPS_K;
        token = block_x() * kTokens;
        tile = block_y() * WARPS_N;
    }
};

// Where the parts of a buffer of the ring begin, in bytes: rows of x, weights and scales of each warp's part,
// and scales of activations.
template <class Format>
struct Buffer {
    static constexpr int kX = sizeof(typename Format::X), kScale = sizeof(typename Format::Scale);
    static constexpr int kRow = kSlab * kX;
    static constexpr int kWeights = kTokens * kRow;
    static constexpr int kScales = kWeights + kWarps * 1024;
    static constexpr int kWarpScales = GROUP == 0 ? 0 : kUnits * 16 * kScale;
    static constexpr int kActScales = kScales + kWarps * kWarpScales;
    static constexpr int kBytes = kActScales + (Format::kActGroups ? WARPS_K * kUnits * kTokens * 4 : 0);
};

// Copies slabs into buffers. A thread copies the same part of every slab: of x one chunk of 16 bytes of every
// kTokenStep-th token, of the weights of its warp its lane's bytes.
template <class Format>
class Loader {
    using B = Buffer<Format>;
    using X = typename Format::X;
    static constexpr int kChunks = B::kRow / 16, kTokenStep = kThreads / kChunks;
    static_assert(kThreads % kChunks == 0, "a thread keeps its chunk");

    const Operands<Format>& in;
    const int lane, warp_k;
    const u32 groups, blocks, rows;  // of scales, of 64 features, of outputs up to the last row tile
    const int token, chunk, tokens;  // this thread's first token, its chunk, and how many tokens there are
    const bool tile_valid;
    const X* x;
    const u8* data;
    const typename Format::Scale* scales;
    u8 *x_to, *data_to, *scales_to;
    const u64 policy;

   public:
    DEVICE Loader(const Operands<Format>& in, const Place& place)
        : in(in),
          lane(place.lane),
          warp_k(place.warp_k),
          groups(ceil_div(in.k, kGroup)),
          blocks(ceil_div(in.k, 64)),
          rows(ceil_div(in.n, 16) * 16),
          token(thread_index() / kChunks),
          chunk(thread_index() % kChunks),
          tokens(in.m - place.token),
          tile_valid((place.tile + place.warp_n) * 16 < in.n),
          // blocks of other tokens read the same weights again
          policy(in.m <= kTokens ? evict_first() : evict_normal()) {
        const int tile = place.tile + place.warp_n;
        x = in.x + static_cast<i64>(place.token + token) * in.k;
        data = in.data + static_cast<i64>(tile) * blocks * 512 + lane * 16;
        scales = in.scales + tile * 16;
        x_to = shared_memory() + token * B::kRow;
        data_to = shared_memory() + B::kWeights + place.warp * 1024 + lane * 16;
        scales_to = shared_memory() + B::kScales + place.warp * B::kWarpScales + lane * 16;
    }

    // Begin the copies of the slab that starts at input feature `start`. What lies beyond k or the last row
    // becomes zero; columns of tokens beyond m stay as they are, since nothing that is stored depends on
    // them.
    DEVICE void load(int buffer, int start) const {
        const int at = buffer * B::kBytes;
        const int k = start + chunk * (16 / B::kX);
#pragma unroll
        for (int i = 0; i < (kTokens + kTokenStep - 1) / kTokenStep; ++i) {
            const int t = token + i * kTokenStep;
            if (t >= kTokens || t >= tokens) break;
            u8* to = x_to + at + i * kTokenStep * B::kRow + (chunk ^ Format::swizzle(t)) * 16;
            const X* row = x + static_cast<i64>(i * kTokenStep) * in.k;
            if (ALIGNED) {
                copy16(to, row + k, k < in.k);
            } else {
                X* elements = reinterpret_cast<X*>(to);
                for (int j = 0; j < 16 / B::kX; ++j)
                    elements[j] = k + j < in.k ? load_global(row + k + j) : static_cast<X>(0);
            }
        }
        const u32 part = start + warp_k * kStage;
#pragma unroll
        for (int b = 0; b < 2; ++b) {
            const u32 block = part / 64 + b;
            const u8* from = data + static_cast<u64>(block) * 512;
            copy16_by(data_to + at + b * 512, from, tile_valid && block < blocks, policy);
        }
        if (GROUP != 0) load_scales(at, part / kGroup, static_cast<u32>(start) / kGroup);
    }

   private:
    // `first` is the first group of the warp's part, `slab_first` that of the slab.
    DEVICE void load_scales(int at, u32 first, u32 slab_first) const {
        constexpr int kPieces = B::kScale;  // of 16 bytes, for the 16 rows of a tile
        if (lane < kUnits * kPieces) {
            const u32 group = first + lane / kPieces;
            const auto* from = scales + static_cast<u64>(group) * rows + lane % kPieces * (16 / B::kScale);
            copy16(scales_to + at, from, tile_valid && group < groups);
        }
        if (Format::kActGroups) {
            for (int i = thread_index(); i < WARPS_K * kUnits * kTokens; i += kThreads) {
                const u32 group = slab_first + i / kTokens;
                const int t = i % kTokens;
                const i64 row = block_x() * kTokens + t;
                const bool valid = t < tokens && group < groups;
                u8* to = shared_memory() + at + B::kActScales + i * 4;
                copy4(to, in.act_scales + row * groups + group, valid);
            }
        }
    }
};

// Runs through `steps` slabs: use(step, buffer) is called by every thread once all of the slab is there, and
// between two calls every thread has ended the first.
template <class Format, class Start, class Use>
DEVICE void stream_slabs(const Operands<Format>& in, const Place& place, int steps, Start start, Use use) {
    const Loader<Format> loader(in, place);
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) loader.load(step, start(step));
        close_copy_group();
    }
    int buffer = 0, free_buffer = STAGES - 1;
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<STAGES - 2>();
        barrier();  // the slab has landed for all, and all are done with the one before it
        const int ahead = step + STAGES - 1;
        if (ahead < steps) loader.load(free_buffer, start(ahead));
        close_copy_group();
        use(step, shared_memory() + buffer * Buffer<Format>::kBytes);
        buffer = buffer + 1 == STAGES ? 0 : buffer + 1;
        free_buffer = free_buffer + 1 == STAGES ? 0 : free_buffer + 1;
    }
}

// This lane's 16 bytes of a weight block of 16 rows by 64, the first or second of its warp's part.
template <class Format>
DEVICE Words4 weight_words(const u8* buffer, const Place& place, int block) {
    const u8* from = buffer + Buffer<Format>::kWeights + place.warp * 1024 + block * 512 + place.lane * 16;
    return *reinterpret_cast<const Words4*>(from);
}

// The scale of one of the sixteen rows of this warp's tile.
template <class Format>
DEVICE float weight_scale(const u8* buffer, const Place& place, int unit, int row) {
    const u8* from = buffer + Buffer<Format>::kScales + place.warp * Buffer<Format>::kWarpScales;
    return Format::scale(reinterpret_cast<const typename Format::Scale*>(from)[unit * 16 + row]);
}

// Where this lane's accumulators of a token tile begin among the block's outputs.
DEVICE int accumulators(const Place& place, int nt) {
    return ((place.warp_n * TOKEN_TILES + nt) * 32 + place.lane) * 4;
}
// Whether this thread sums up outputs: consecutive ones across the block, at thread_index() + j * kThreads
// for j below kOwned; either every thread has as many or some have none. Where a warp has all of K to itself
// they are its accumulators instead.
static_assert(kOutputs % kThreads == 0 || kOutputs < kThreads, "outputs are shared out evenly");
DEVICE bool owns() { return kOutputs >= kThreads || thread_index() < kOutputs; }

// Calls store(j, row, token) for those of a thread's outputs that exist.
template <class Store>
DEVICE void for_owned(const Place& place, int m, int n, Store store) {
#pragma unroll
    for (int j = 0; j < kOwned; ++j) {
        int lane = place.lane, reg = j % 4, nt = j / 4, tile = place.warp_n;
        if (WARPS_K > 1) {
            const int o = thread_index() + j * kThreads;
            lane = o / 4 % 32, reg = o % 4, nt = o / 128 % TOKEN_TILES, tile = o / (128 * TOKEN_TILES);
        }
        const int row = (place.tile + tile) * 16 + lane / 4 + reg / 2 * 8;
        const int token = place.token + nt * 8 + lane % 4 * 2 + reg % 2;
        if (owns() && row < n && token < m) store(j, row, token);
    }
}
