// How a kernel call is recorded: one 64-bit word per argument, in the order of the kernel's parameters.
//
// QSPEC_RECORDABLE(name), after the kernel qspec_<name>, exports qspec_recorded_<name>, which takes the words
// instead of the arguments; qspec_replay (program.cpp) runs a list of such calls.
#pragma once

#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "pool.hpp"

namespace qspec {

using Word = uint64_t;  // a pointer, an int64, or in its low half a float

template <class T>
inline T from_word(Word word) {
    if constexpr (std::is_same_v<T, float>) {
        const auto low = static_cast<uint32_t>(word);
        float value;
        memcpy(&value, &low, 4);
        return value;
    } else if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>(word);
    } else {
        return static_cast<T>(word);
    }
}

template <class... Arguments, size_t... kIndex>
inline int call_with(int (*kernel)(Arguments...), const Word* words, std::index_sequence<kIndex...>) {
    return kernel(from_word<Arguments>(words[kIndex])...);
}

template <class... Arguments>
inline int call_with(int (*kernel)(Arguments...), const Word* words) {
    return call_with(kernel, words, std::index_sequence_for<Arguments...>{});
}

}  // namespace qspec

#define QSPEC_RECORDABLE(name)                                         \
    QSPEC_EXPORT int qspec_recorded_##name(const qspec::Word* words) { \
        return qspec::call_with(qspec_##name, words);                  \
    }
