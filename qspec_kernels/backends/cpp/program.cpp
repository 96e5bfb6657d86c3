// Replays a program: recorded kernel calls one after the other, until one fails.

#include "program.hpp"

namespace {

struct Call {
    int (*kernel)(const qspec::Word*);
    const qspec::Word* words;
};

}  // namespace

QSPEC_EXPORT int qspec_replay(const void* calls, int64_t count) {
    const auto* call = static_cast<const Call*>(calls);
    for (int64_t i = 0; i < count; ++i)
        if (const int status = call[i].kernel(call[i].words)) return status;
    return qspec::kDone;
}
