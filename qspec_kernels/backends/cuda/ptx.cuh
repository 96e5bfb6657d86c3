// The instructions that the kernels use, one function each, and every access to global memory.
//
// Kernels include nothing and call nothing of the CUDA runtime: what the hardware does stands here alone, so
// that the same kernels run on a CPU over other bodies of these functions (tests/gpu/emulation/ptx.hpp).
// Fragment layouts are those of the PTX ISA, "Matrix Fragments for mma.m16n8k16 / k32 / k64": in a warp,
// lane = 4 g + t holds row g or column g and what its t says.

#define DEVICE __device__ __forceinline__
// A kernel, threads of a block, and the blocks that a multiprocessor is to have registers for.
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)

typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct alignas(16) Words4 {
    u32 word[4];
};
struct alignas(8) Words2 {
    u32 word[2];
};

extern __shared__ Words4 shared_words[];

DEVICE u8* shared_memory() { return reinterpret_cast<u8*>(shared_words); }
DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }

// -- between threads ---------------------------------------------------------------------------------------

DEVICE void barrier() { __syncthreads(); }
DEVICE u32 shuffle_xor(u32 value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// -- global memory -----------------------------------------------------------------------------------------

template <class T>
DEVICE T load_global(const T* p) {
    return __ldg(p);
}
DEVICE Words4 load_global(const Words4* p) {
    Words4 v;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(p));
    return v;
}
template <class T>
DEVICE void store_global(T* p, T value) {
    *p = value;
}

DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// Copies to shared memory that land at the wait for their group. Where `valid` is false zeros land instead
// and nothing is read, wherever the address leads.
DEVICE void copy16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
DEVICE void copy4(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 4 : 0)
                 : "memory");
}
// What is read once is to leave the L2 cache before what is read again does; the other policy is the usual
// one.
DEVICE u64 evict_first() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
DEVICE u64 evict_normal() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
DEVICE void copy16_by(void* shared, const void* global, bool valid, u64 policy) {
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared_address(shared)),
        "l"(global), "r"(valid ? 16 : 0), "l"(policy)
        : "memory");
}
DEVICE void close_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `kPending` of this thread's latest groups are on their way.
template <int kPending>
DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// -- matrices ----------------------------------------------------------------------------------------------

// Four matrices of eight rows of 16 bytes: lane 8 i + r brings the address of row r of matrix i and receives
// bytes 4 t .. 4 t + 3 of row g of each.
DEVICE void load_matrices(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// c [16, 8] += a [16, k] b [k, 8]
DEVICE void mma_s8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_s4(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// -- registers ---------------------------------------------------------------------------------------------

// Byte i of the result is byte (nibble i of `selector`, below 8) of the eight bytes of x, then y.
DEVICE u32 permute_bytes(u32 x, u32 y, u32 selector) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(y), "r"(selector));
    return d;
}
// Two bf16 at once: a * b + c, rounded once.
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE float half_to_float(u16 bits) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
}
DEVICE u16 float_to_bf16(float f) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(f));
    return bits;
}
DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 as_bits(float f) { return __float_as_uint(f); }
DEVICE float bf16_to_float(u16 bits) { return as_float(static_cast<u32>(bits) << 16); }

// Arithmetic whose rounding is pinned: never contracted, to nearest even, subnormals kept.
DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
DEVICE float sub(float a, float b) { return __fsub_rn(a, b); }
DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float minimum(float a, float b) { return fminf(a, b); }
DEVICE float maximum(float a, float b) { return fmaxf(a, b); }
DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float int_to_float(int i) { return __int2float_rn(i); }
// To the nearest integer, ties to even.
DEVICE int round_to_int(float f) { return __float2int_rn(f); }
