// The library's own threads: tasks of one kernel call, shared between the caller and a few workers.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#define QSPEC_EXPORT extern "C" __attribute__((visibility("default")))

namespace qspec {

// Runs task(context, i, slot) for every i in [0, tasks) on at most `threads` threads, the caller among them,
// and returns when all are done. `slot` < max(threads, 1) is the same for all tasks of one thread. Tasks are
// handed out one by one, so a thread that the system holds back costs its present task and no more. Called
// while another call runs, it works alone.
void run_tasks(int64_t tasks, int64_t threads, void (*task)(const void*, int64_t, int64_t),
               const void* context);

// body(begin, end, slot) over slices of [0, count), each of about `grain` items; a single slice stays on this
// thread.
template <class Body>
inline void parallel_ranges(int64_t count, int64_t grain, int64_t threads, const Body& body) {
    struct Ranges {
        const Body& body;
        int64_t count, grain;
    };
    if (grain < 1) grain = 1;
    const int64_t tasks = (count + grain - 1) / grain;
    if (threads < 2 || tasks < 2) {
        if (count > 0) body(int64_t{0}, count, int64_t{0});
        return;
    }
    const Ranges ranges = {body, count, grain};
    const auto task = [](const void* context, int64_t i, int64_t slot) {
        const auto& r = *static_cast<const Ranges*>(context);
        const int64_t begin = i * r.grain, end = begin + r.grain;
        r.body(begin, end < r.count ? end : r.count, slot);
    };
    run_tasks(tasks, threads, task, &ranges);
}

// Scratch memory of one call, aligned to a cache line; `ok()` is false where the system has none left.
template <class T>
class Scratch {
   public:
    explicit Scratch(int64_t count) {
        const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
        data_ = static_cast<T*>(aligned_alloc(64, bytes));
    }
    ~Scratch() { free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    bool ok() const { return data_ != nullptr; }
    T* get() const { return data_; }

   private:
    T* data_;
};

// What every exported kernel returns; the launcher turns a failure into an exception. kOutOfRange: an id, row
// or position outside its table, found before anything is written.
enum Status : int { kDone = 0, kOutOfMemory = 1, kOutOfRange = 2 };

}  // namespace qspec
