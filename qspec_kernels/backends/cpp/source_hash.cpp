// Which sources this library was built from: library.py compares it with the sources beside it.

#include "pool.hpp"

QSPEC_EXPORT const char* qspec_source_hash() { return QSPEC_SOURCE_HASH; }
