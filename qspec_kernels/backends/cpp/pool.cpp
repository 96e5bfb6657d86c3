// A pool of detached threads. Between calls a worker spins for a short while, because the next kernel of a
// decode step follows within microseconds, and then sleeps on a futex.
//
// One call at a time owns the pool. Workers enter it through a gate: the low bits count who is inside, one
// high bit says closed. The owner closes the gate when no task is left and waits only for those inside, so a
// worker that never woke is never waited for.

#include "pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int32_t kClosed = 1 << 30;
constexpr int64_t kSpinNanoseconds = 300000;
constexpr int64_t kMaxWorkers = 255;

struct Pool {
    int32_t owned = 0;
    int32_t generation = 0;
    int32_t sleepers = 0;
    int32_t gate = kClosed;
    int64_t workers = 0;
    int64_t admitted = 0;  // workers with a smaller number may enter this call
    int64_t tasks = 0;
    void (*task)(const void*, int64_t, int64_t) = nullptr;
    const void* context = nullptr;
    uint32_t float_mode = 0;  // the caller's rounding and flushing: a task computes the same on any thread
    alignas(64) int64_t next = 0;
};

Pool pool;
pthread_once_t fork_handler_once = PTHREAD_ONCE_INIT;

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

uint32_t get_float_mode() {
#if defined(__x86_64__)
    return __builtin_ia32_stmxcsr();
#else
    return 0;
#endif
}

void set_float_mode([[maybe_unused]] uint32_t mode) {
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(mode);
#endif
}

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

void sleep_while(int32_t* word, int32_t value) {
#if defined(__linux__)
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
    timespec pause = {0, 50000};
    if (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value) nanosleep(&pause, nullptr);
#endif
}

void wake_all(int32_t* word) {
#if defined(__linux__)
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

void take_tasks(int64_t slot) {
    const int64_t tasks = pool.tasks;
    for (int64_t i; (i = __atomic_fetch_add(&pool.next, 1, __ATOMIC_RELAXED)) < tasks;)
        pool.task(pool.context, i, slot);
}

// Returns once the generation differs from `seen`.
int32_t await_generation(int32_t seen) {
    const int64_t deadline = now_ns() + kSpinNanoseconds;
    do {
        for (int i = 0; i < 32; ++i) {
            int32_t current = __atomic_load_n(&pool.generation, __ATOMIC_ACQUIRE);
            if (current != seen) return current;
            relax();
        }
    } while (now_ns() < deadline);
    __atomic_fetch_add(&pool.sleepers, 1, __ATOMIC_SEQ_CST);
    int32_t current;
    while ((current = __atomic_load_n(&pool.generation, __ATOMIC_SEQ_CST)) == seen)
        sleep_while(&pool.generation, seen);
    __atomic_fetch_sub(&pool.sleepers, 1, __ATOMIC_SEQ_CST);
    return current;
}

void* worker(void* argument) {
    const int64_t number = reinterpret_cast<intptr_t>(argument);
    int32_t seen = 0;
    for (;;) {
        seen = await_generation(seen);
        const bool open = !(__atomic_fetch_add(&pool.gate, 1, __ATOMIC_ACQ_REL) & kClosed);
        if (open && number < pool.admitted) {
            set_float_mode(pool.float_mode);
            take_tasks(number + 1);
        }
        __atomic_fetch_sub(&pool.gate, 1, __ATOMIC_ACQ_REL);
    }
    return nullptr;
}

// A forked child has the caller's thread only: it starts from an empty pool.
void forget_workers() { pool = Pool{}; }

void install_fork_handler() { pthread_atfork(nullptr, nullptr, forget_workers); }

void start_workers(int64_t wanted) {
    pthread_once(&fork_handler_once, install_fork_handler);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    while (pool.workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, &detached, worker, reinterpret_cast<void*>(pool.workers)) != 0) break;
        ++pool.workers;
    }
    pthread_attr_destroy(&detached);
}

}  // namespace

namespace qspec {

void run_tasks(int64_t tasks, int64_t threads, void (*task)(const void*, int64_t, int64_t),
               const void* context) {
    int64_t helpers = (threads < tasks ? threads : tasks) - 1;
    if (helpers > kMaxWorkers) helpers = kMaxWorkers;
    if (helpers < 1 || __atomic_exchange_n(&pool.owned, 1, __ATOMIC_ACQUIRE)) {
        for (int64_t i = 0; i < tasks; ++i) task(context, i, 0);
        return;
    }
    if (pool.workers < helpers) start_workers(helpers);
    // A worker still leaving the last call counts itself in and out of the closed gate without reading these.
    pool.admitted = helpers;
    pool.tasks = tasks;
    pool.task = task;
    pool.context = context;
    pool.float_mode = get_float_mode();
    __atomic_store_n(&pool.next, 0, __ATOMIC_RELAXED);
    __atomic_fetch_and(&pool.gate, ~kClosed, __ATOMIC_ACQ_REL);
    __atomic_fetch_add(&pool.generation, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&pool.sleepers, __ATOMIC_SEQ_CST)) wake_all(&pool.generation);

    take_tasks(0);

    __atomic_fetch_or(&pool.gate, kClosed, __ATOMIC_ACQ_REL);
    for (int spins = 0; __atomic_load_n(&pool.gate, __ATOMIC_ACQUIRE) != kClosed; ++spins) {
        relax();
        // The worker we wait for may be off its core, and ours may be the one it needs.
        if (spins > 20000) sched_yield();
    }
    __atomic_store_n(&pool.owned, 0, __ATOMIC_RELEASE);
}

}  // namespace qspec
