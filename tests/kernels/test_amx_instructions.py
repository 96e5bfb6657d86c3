"""The tile instructions of AMX as amx_tiles.hpp writes them, compiled by themselves."""

import ctypes
import subprocess

import pytest

from qspec_kernels import dispatch
from tests.conftest import use_backend
from tests.kernels.test_amx import EMULATED, FLAGS, SOURCES

AMX = ["-mamx-tile", "-mamx-int8", "-mamx-bf16"]
# every instruction once, by the functions that the kernels call and by the compiler's intrinsics
INSTRUCTIONS = """
#include <immintrin.h>
#include "amx_tiles.hpp"
using namespace qspec;
QSPEC_EXPORT void ours(const TileConfig* config, const void* from, long stride, void* to) {
    configure_tiles(*config);
    load_tile<4>(from, stride);
    load_tile<7>(from, stride);
    zero_tile<0>();
    dot_bf16_tiles<1, 4, 7>();
    dot_byte_tiles<2, 5, 6>();
    store_tile<3>(to, stride);
    save_tiles(*static_cast<TileConfig*>(to));
    release_tiles();
}
QSPEC_EXPORT void intrinsics(const TileConfig* config, const void* from, long stride, void* to) {
    _tile_loadconfig(config);
    _tile_loadd(4, from, stride);
    _tile_loadd(7, from, stride);
    _tile_zero(0);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_stored(3, to, stride);
    _tile_storeconfig(to);
    _tile_release();
}
"""
INSTRUCTION_BYTES = 48
# whether the configuration of a stranger's tiles is there after a task of ours
NEIGHBOURS = """
#include "amx_tiles.hpp"
using namespace qspec;
QSPEC_EXPORT bool kept(bool configured, bool in_scope) {
    TileConfig before(3, 32, 5), after;
    if (configured) configure_tiles(before);
    save_tiles(before);
    if (in_scope) {
        const TileScope scope(TileConfig(16, 64, 16));
    } else {
        configure_tiles(TileConfig(16, 64, 16));
        release_tiles();
    }
    save_tiles(after);
    release_tiles();
    return memcmp(&before, &after, sizeof(before)) == 0;
}
"""


def test_the_instructions_are_those_of_the_compiler(compiler, tmp_path):
    if not (SOURCES / "lib" / "qspec_amx.so").exists():
        pytest.skip("the library of amx was not built")
    source, path = tmp_path / "instructions.cpp", tmp_path / "instructions.so"
    source.write_text(INSTRUCTIONS)
    subprocess.run(
        [compiler, *FLAGS, *AMX, f"-I{SOURCES}", "-shared", str(source), "-o", str(path)], check=True
    )
    code = ctypes.CDLL(str(path))
    ours, intrinsics = (
        ctypes.string_at(ctypes.cast(code[name], ctypes.c_void_p), INSTRUCTION_BYTES)
        for name in ("ours", "intrinsics")
    )
    assert ours == intrinsics


@pytest.mark.parametrize("flags", [EMULATED, AMX], ids=["emulated", "amx"])
def test_a_task_leaves_the_configuration_of_tiles_as_it_was(compiler, flags, tmp_path, monkeypatch):
    if flags is AMX:
        use_backend("amx", monkeypatch)  # or skip
        monkeypatch.undo()
        dispatch.reset()
    source, path = tmp_path / "neighbours.cpp", tmp_path / "neighbours.so"
    source.write_text(NEIGHBOURS)
    subprocess.run(
        [compiler, *FLAGS, *flags, f"-I{SOURCES}", "-shared", str(source), "-o", str(path)], check=True
    )
    kept = ctypes.CDLL(str(path)).kept
    kept.restype = ctypes.c_bool
    assert kept(True, True)
    assert kept(False, True)
    assert not kept(True, False)  # released, as by a scope that keeps nothing
