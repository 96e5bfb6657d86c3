// AMX keeps eight kilobytes of registers for each thread that uses it; Linux gives them to a process that
// asks.

#include "amx_tiles.hpp"

#if defined(QSPEC_HAS_TILES) && !defined(QSPEC_EMULATED_TILES)
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Asks for all threads of the process, now and later: 0, or the system's error number. The libraries without
// tile kernels need nothing.
QSPEC_EXPORT int qspec_request_tiles() {
#if defined(QSPEC_HAS_TILES) && !defined(QSPEC_EMULATED_TILES)
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0 ? 0 : errno;
#else
    return 0;
#endif
}
