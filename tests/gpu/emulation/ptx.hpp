// The functions of backends/cuda/ptx.cuh on a CPU: one thread of a block is one fiber.
//
// A block's threads run warp by warp; a thread runs until it waits for its warp (an instruction that all
// lanes take part in) or for its block. What can go wrong on a GPU goes wrong here:
//  - global memory is reached by addresses that mean nothing to the CPU, checked against the buffers given;
//  - shared memory ends at a guard and starts as NaN; so does every buffer the kernel is to fill;
//  - asynchronous copies land at the wait for their group (`late`) or at once (not `late`): a kernel must be
//    right with both, since between the two a GPU is free;
//  - warps run forwards or backwards;
//  - lanes that meet in different instructions, and threads that wait for ever, are errors.
// Matrix fragments are those of the PTX ISA, as formulas; test_cuda_fragments.py compares them with CuTe's.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <string>
#include <type_traits>
#include <unordered_set>
#include <vector>

#define DEVICE inline
#define KERNEL(threads, blocks) static void

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

namespace emulation {

struct Buffer {
    u64 address;  // what the kernel is given
    u8* memory;
    u64 size;
    bool writable;
};
struct Copy {
    void* to;
    u8 bytes[16];
    int size;
};
enum State { kReady, kInWarp, kInBlock, kDone };
struct Thread {
    ucontext_t context;
    jmp_buf jump;
    bool started = false;
    State state = kReady;
    std::vector<std::vector<Copy>> groups;  // closed groups of copies that have not landed, oldest first
    std::vector<Copy> open;
    const char* instruction = nullptr;
    void* operands = nullptr;
};

inline std::vector<Buffer> buffers;
inline std::vector<Thread> threads;
inline std::vector<u8> stacks;
inline std::unordered_set<u64> read_once;  // addresses of copies that leave the cache first
inline std::string error;
inline jmp_buf scheduler;
inline ucontext_t scheduler_context;
inline sigjmp_buf fault;
inline u8* shared = nullptr;
inline int current = 0, block_x = 0, block_y = 0;
inline bool late = true;
inline void (*body)(void*) = nullptr;
inline void* body_arguments = nullptr;

constexpr int kStack = 64 << 10;

[[noreturn]] inline void to_scheduler() { _longjmp(scheduler, 1); }

[[noreturn]] inline void fail(const std::string& message) {
    if (error.empty())
        error = message + " (thread " + std::to_string(current) + ", block " + std::to_string(block_x) + "," +
                std::to_string(block_y) + ")";
    to_scheduler();
}
inline void yield(State state) {
    threads[current].state = state;
    if (!_setjmp(threads[current].jump)) to_scheduler();
}

inline u8* global(const void* p, u64 size, bool write) {
    const u64 address = reinterpret_cast<u64>(p);
    for (const Buffer& b : buffers)
        if (address >= b.address && address + size <= b.address + b.size) {
            if (write && !b.writable) fail("writes to an input");
            if (address % size) fail("misaligned access of " + std::to_string(size) + " bytes");
            return b.memory + (address - b.address);
        }
    fail("global memory out of bounds: " + std::to_string(size) + " bytes");
}

// All lanes of a warp come here with their operands; the last one runs `all` over the 32 of them.
template <class T, class All>
inline void with_warp(const char* instruction, T& operands, All all) {
    Thread* lanes = &threads[current / 32 * 32];
    Thread& self = threads[current];
    self.instruction = instruction;
    self.operands = &operands;
    int here = 1;
    for (int i = 0; i < 32; ++i)
        if (&lanes[i] != &self && lanes[i].state == kInWarp) {
            if (lanes[i].instruction != instruction)
                fail(std::string("lanes meet in ") + instruction + " and " + lanes[i].instruction);
            ++here;
        }
    if (here < 32) return yield(kInWarp);
    T* of_lane[32];
    for (int i = 0; i < 32; ++i) of_lane[i] = static_cast<T*>(lanes[i].operands);
    all(of_lane);
    for (int i = 0; i < 32; ++i) lanes[i].state = kReady;
}

inline void land(const std::vector<Copy>& group) {
    for (const Copy& c : group) memcpy(c.to, c.bytes, c.size);
}
inline void copy(void* to, const void* from, int size, bool valid) {
    Copy c = {to, {}, size};
    if (reinterpret_cast<u64>(to) % size) fail("misaligned copy to shared memory");
    if (valid) memcpy(c.bytes, global(from, size, false), size);
    if (late)
        threads[current].open.push_back(c);
    else
        memcpy(to, c.bytes, size);
}

// -- fragments: element i of a lane -> (row, k), (k, column), (row, column)
// ----------------------------------

struct At {
    int row, column;
};
// `elements` of `per` bytes... of A [16, k]: registers hold `per` consecutive k each
inline At a_at(int lane, int i, int per) {
    const int g = lane / 4, t = lane % 4, reg = i / per;
    return {g + (reg % 2 ? 8 : 0), (reg / 2) * 4 * per + t * per + i % per};
}
inline At b_at(int lane, int i, int per) {
    const int g = lane / 4, t = lane % 4;
    return {(i / per) * 4 * per + t * per + i % per, g};
}
inline At c_at(int lane, int i) { return {lane / 4 + (i / 2) * 8, lane % 4 * 2 + i % 2}; }

inline int element(u32 word, int i, int bits) {
    const int shift = 32 - bits;
    return static_cast<int>(word << (shift - i * bits)) >> shift;  // sign extended
}
inline float bf16(u32 word, int i) {
    const u32 bits = (word >> (16 * i)) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

template <class C>
struct Mma {
    C* c;
    const u32* a;
    const u32* b;
};

// A k of `per` elements a register: 2 (bf16), 4 (s8), 8 (s4).
template <class C, class Sum, int per, class Element>
inline void mma(Mma<C>** lanes, Element of) {
    constexpr int k = 8 * per;
    static Sum a[16][k], b[k][8];
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4 * per; ++i) {
            const At p = a_at(lane, i, per);
            a[p.row][p.column] = of(lanes[lane]->a[i / per], i % per);
        }
        for (int i = 0; i < 2 * per; ++i) {
            const At p = b_at(lane, i, per);
            b[p.row][p.column] = of(lanes[lane]->b[i / per], i % per);
        }
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
            const At p = c_at(lane, i);
            Sum sum = lanes[lane]->c[i];
            for (int j = 0; j < k; ++j) sum += a[p.row][j] * b[j][p.column];
            lanes[lane]->c[i] = static_cast<C>(sum);
        }
}

// -- running
// -------------------------------------------------------------------------------------------------

inline void thread_main() {
    body(body_arguments);
    threads[current].state = kDone;
    to_scheduler();
}
inline void resume(int i) {
    current = i;
    Thread& t = threads[i];
    if (_setjmp(scheduler)) return;
    if (t.started) _longjmp(t.jump, 1);
    t.started = true;
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = &stacks[static_cast<size_t>(i) * kStack];
    t.context.uc_stack.ss_size = kStack;
    t.context.uc_link = nullptr;
    makecontext(&t.context, thread_main, 0);
    setcontext(&t.context);
}
inline void run_block(int count, bool backwards) {
    threads.assign(count, Thread());
    const int warps = count / 32;
    for (;;) {
        bool progress = false;
        for (int w = 0; w < warps; ++w) {
            const int first = (backwards ? warps - 1 - w : w) * 32;
            for (bool again = true; again;) {
                again = false;
                for (int i = first; i < first + 32; ++i)
                    if (threads[i].state == kReady) {
                        resume(i);
                        if (!error.empty()) return;
                        again = progress = true;
                    }
            }
        }
        int done = 0, waiting = 0;
        for (const Thread& t : threads) {
            done += t.state == kDone;
            waiting += t.state == kInBlock;
        }
        if (done == count) return;
        if (waiting == count) {
            for (Thread& t : threads) t.state = kReady;
        } else if (!progress) {
            error = "threads wait for ever: some for their warp or block, others have ended";
            return;
        }
    }
}
inline void on_fault(int) { siglongjmp(fault, 1); }

struct Launch {
    int grid_x, grid_y, threads, shared_bytes, late, backwards;
};

// Shared memory that ends at a page that cannot be touched, full of NaN.
inline u8* guarded(u64 size, u8** base, u64* mapped) {
    const u64 page = 4096, pages = (size + page - 1) / page * page;
    *mapped = pages + page;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    *base = static_cast<u8*>(mmap(nullptr, *mapped, PROT_READ | PROT_WRITE, flags, -1, 0));
    mprotect(*base + pages, page, PROT_NONE);
    return *base + pages - size;
}

template <class... A, size_t... I>
inline void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}
template <class... A>
inline const char* launch(void (*kernel)(A...), const Launch& how, void** arguments, int count) {
    error.clear();
    read_once.clear();
    if (count != static_cast<int>(sizeof...(A))) return "another number of arguments than the kernel takes";
    struct Bound {
        void (*kernel)(A...);
        void** arguments;
    } bound = {kernel, arguments};
    body = [](void* b) {
        const Bound& bound = *static_cast<Bound*>(b);
        call(bound.kernel, bound.arguments, std::index_sequence_for<A...>());
    };
    body_arguments = &bound;
    late = how.late;
    stacks.resize(static_cast<size_t>(how.threads) * kStack);
    u8* base;
    u64 mapped;
    shared = guarded(how.shared_bytes, &base, &mapped);
    static std::vector<u8> alternate(64 << 10);
    stack_t mine = {alternate.data(), 0, alternate.size()}, theirs;
    sigaltstack(&mine, &theirs);
    struct sigaction action = {}, segv, bus;
    action.sa_handler = on_fault;
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &segv);
    sigaction(SIGBUS, &action, &bus);
    if (sigsetjmp(fault, 1)) {
        error = "touches memory that is not there, other than by the functions of ptx.cuh";
    } else {
        for (block_y = 0; block_y < how.grid_y && error.empty(); ++block_y)
            for (block_x = 0; block_x < how.grid_x && error.empty(); ++block_x) {
                memset(shared, 0xff, how.shared_bytes);
                run_block(how.threads, how.backwards);
            }
    }
    sigaction(SIGSEGV, &segv, nullptr);
    sigaction(SIGBUS, &bus, nullptr);
    sigaltstack(&theirs, nullptr);
    munmap(base, mapped);
    return error.c_str();
}

}  // namespace emulation

extern "C" void set_buffers(const emulation::Buffer* given, int count) {
    emulation::buffers.assign(given, given + count);
}
// Row and column of an element of operand 'a', 'b' or 'c', with `per` elements a register.
extern "C" void fragment(char operand, int lane, int i, int per, int* at) {
    const emulation::At p = operand == 'a'   ? emulation::a_at(lane, i, per)
                            : operand == 'b' ? emulation::b_at(lane, i, per)
                                             : emulation::c_at(lane, i);
    at[0] = p.row;
    at[1] = p.column;
}

inline u8* shared_memory() { return emulation::shared; }
inline int thread_index() { return emulation::current; }
inline int block_x() { return emulation::block_x; }
inline int block_y() { return emulation::block_y; }

inline void barrier() { emulation::yield(emulation::kInBlock); }
inline u32 shuffle_xor(u32 value, int mask) {
    u32 pair[2] = {value, 0};
    int at = emulation::current % 32;
    struct Operands {
        u32* pair;
        int from;
    } mine = {pair, at ^ mask};
    emulation::with_warp("shuffle_xor", mine, [](Operands** lanes) {
        for (int i = 0; i < 32; ++i) lanes[i]->pair[1] = lanes[lanes[i]->from]->pair[0];
    });
    return pair[1];
}

template <class T>
inline T load_global(const T* p) {
    T value;
    memcpy(&value, emulation::global(p, sizeof(T), false), sizeof(T));
    return value;
}
template <class T>
inline void store_global(T* p, T value) {
    memcpy(emulation::global(p, sizeof(T), true), &value, sizeof(T));
}

inline void copy16(void* to, const void* from, bool valid) { emulation::copy(to, from, 16, valid); }
inline void copy4(void* to, const void* from, bool valid) { emulation::copy(to, from, 4, valid); }
inline u64 evict_first() { return 1; }
inline u64 evict_normal() { return 0; }
inline void copy16_by(void* shared, const void* global, bool valid, u64 policy) {
    const u64 address = reinterpret_cast<u64>(global);
    if (valid && policy == evict_first() && !emulation::read_once.insert(address).second)
        emulation::fail("reads again what was to leave the cache first");
    copy16(shared, global, valid);
}
inline void close_copy_group() {
    emulation::Thread& self = emulation::threads[emulation::current];
    self.groups.push_back(std::move(self.open));
    self.open.clear();
}
template <int kPending>
inline void wait_for_copies() {
    auto& groups = emulation::threads[emulation::current].groups;
    while (groups.size() > kPending) {
        emulation::land(groups.front());
        groups.erase(groups.begin());
    }
}

inline void load_matrices(u32 (&r)[4], const void* row) {
    struct Operands {
        u32* r;
        const u8* row;
    } mine = {r, static_cast<const u8*>(row)};
    if (reinterpret_cast<u64>(row) % 16) emulation::fail("misaligned row of a matrix");
    emulation::with_warp("load_matrices", mine, [](Operands** lanes) {
        for (int matrix = 0; matrix < 4; ++matrix)
            for (int i = 0; i < 32; ++i)
                memcpy(&lanes[i]->r[matrix], lanes[8 * matrix + i / 4]->row + i % 4 * 4, 4);
    });
}
inline void mma_s8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const u32 b[2] = {b0, b1};
    emulation::Mma<int> mine = {c, a, b};
    emulation::with_warp("mma_s8", mine, [](emulation::Mma<int>** lanes) {
        emulation::mma<int, int, 4>(lanes, [](u32 w, int i) { return emulation::element(w, i, 8); });
    });
}
inline void mma_s4(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const u32 b[2] = {b0, b1};
    emulation::Mma<int> mine = {c, a, b};
    emulation::with_warp("mma_s4", mine, [](emulation::Mma<int>** lanes) {
        emulation::mma<int, int, 8>(lanes, [](u32 w, int i) { return emulation::element(w, i, 4); });
    });
}
// Sums in double, rounded once: the hardware's own order is not documented.
inline void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const u32 b[2] = {b0, b1};
    emulation::Mma<float> mine = {c, a, b};
    emulation::with_warp("mma_bf16", mine, [](emulation::Mma<float>** lanes) {
        emulation::mma<float, double, 2>(lanes, [](u32 w, int i) { return emulation::bf16(w, i); });
    });
}

inline u32 permute_bytes(u32 x, u32 y, u32 selector) {
    const u64 bytes = static_cast<u64>(y) << 32 | x;
    u32 d = 0;
    for (int i = 0; i < 4; ++i) {
        const int s = selector >> (4 * i) & 15;
        u32 byte = bytes >> (8 * (s & 7)) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;
        d |= byte << (8 * i);
    }
    return d;
}
inline float as_float(u32 bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
inline u32 as_bits(float f) {
    u32 bits;
    memcpy(&bits, &f, 4);
    return bits;
}
inline float bf16_to_float(u16 bits) { return as_float(static_cast<u32>(bits) << 16); }
inline u16 float_to_bf16(float f) {
    if (f != f) return 0x7fff;
    const u32 bits = as_bits(f);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u32 d = 0;
    for (int i = 0; i < 2; ++i) {
        // products of bf16 are exact in double; so is the sum where exponents are near, as they are here
        const double product = static_cast<double>(emulation::bf16(a, i)) * emulation::bf16(b, i);
        const double sum = product + emulation::bf16(c, i);
        d |= static_cast<u32>(float_to_bf16(static_cast<float>(sum))) << (16 * i);
    }
    return d;
}
inline float half_to_float(u16 bits) {
    _Float16 h;
    memcpy(&h, &bits, 2);
    return static_cast<float>(h);
}

inline float mul(float a, float b) { return a * b; }
inline float add(float a, float b) { return a + b; }
inline float sub(float a, float b) { return a - b; }
inline float divide(float a, float b) { return a / b; }
inline float minimum(float a, float b) { return std::fmin(a, b); }
inline float maximum(float a, float b) { return std::fmax(a, b); }
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline float int_to_float(int i) { return static_cast<float>(i); }
inline int round_to_int(float f) { return static_cast<int>(std::nearbyint(f)); }
