"""AMD's GPUs: what is compiled for them, who know no PTX and have little shared memory, and launches."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs triton")
from triton.backends.compiler import GPUTarget  # noqa: E402

from qspec_kernels.backends.triton import _launch, _rows, _tiles  # noqa: E402
from tests.gpu import build_amd, build_table  # noqa: E402


def variant(op, end, arch=_tiles.AMD_ARCH):
    """What an op launches, chosen by how its name ends."""
    return next(one for one in build_table.variants(op, arch) if one.name.endswith(end))


# the other ops and variants: python -m tests.gpu.build_amd
@pytest.mark.parametrize(
    ("op", "end", "opcode"),
    [
        ("linear_w4a8", "4096x4096 m=64", "v_mfma_i32"),
        # where the compiler ends the process if nibbles become vectors of 4-bit integers
        ("linear_mxfp4a16", "bf16 g32 4096x4096 m=4096", "v_mfma_f32"),
        # a tile of the sizes of sm_86 takes 80 KiB
        ("linear_w4a16_prefill", "4096x4096 m=512", "v_mfma_f32"),
        # there is no TF32 in three products
        ("attention", "fp32 fp32 32/8 x 128", "v_mfma_f32"),
    ],
)
def test_what_is_compiled_for_amd(tmp_path, monkeypatch, op, end, opcode):
    monkeypatch.setattr(triton.runtime.driver, "_active", build_amd.DRIVER)
    built = build_amd.compiled(variant(op, end), str(tmp_path))
    assert opcode in built.asm["amdgcn"]
    assert "inline_asm" not in built.asm["ttir"]
    assert 0 < built.metadata.shared <= build_amd.SHARED


def test_without_an_amd_gpu_there_is_ptx(tmp_path):
    """At which the compiler for AMD's ends the process."""
    built = build_amd.compiled(
        variant("linear_w4a8", "4096x4096 m=64", 86), str(tmp_path), GPUTarget("cuda", 86, 32)
    )
    assert "inline_asm" in built.asm["ttir"]


def test_shared_memory_that_is_too_much_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", build_amd.DRIVER)
    monkeypatch.setitem(_tiles.SHARED, _tiles.AMD_ARCH, _tiles.SHARED[86])
    found = build_amd.wrong(variant("linear_bf16_prefill", "4096x4096 m=512"), str(tmp_path))
    assert found == "linear_bf16_prefill 4096x4096 m=512: 73728 bytes of shared memory"


def test_instructions_that_follow_the_tokens_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", build_amd.DRIVER)
    # a tile of 16 tokens
    found = build_amd.wrong(variant("linear_bf16", "bf16 4096x4096 m=16", 86), str(tmp_path))
    assert found == "linear_bf16 bf16 4096x4096 m=16: ['v_mfma_f32_16x16x16_bf16']"


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("step_bytes", [(16, 64), (32, 128), (64, 256), (64, 512)])
def test_tiles_are_no_narrower_than_the_instruction(integer, step_bytes):
    def tile(m, n):
        return _tiles.linear(m, n, _tiles.AMD_ARCH, step_bytes=step_bytes, integer=integer)

    tiles = {tile(m, n) for m in range(1, 200) for n in (48, 28672)}
    assert min(min(one.block_m, one.block_n) for one in tiles) == (16 if integer else 32)


def test_launches_are_of_a_size_that_amds_devices_take(monkeypatch):
    def launched() -> tuple[int, list[int]]:
        return _launch.arch_of(torch.device("cuda")), [_rows.warps_of(count) for count in (4096, 32768)]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    monkeypatch.setattr(torch.version, "hip", None)
    assert launched() == (94, [8, 32])
    monkeypatch.setattr(torch.version, "hip", "7.1")
    # gfx942 is no successor of sm_90
    assert launched() == (_tiles.AMD_ARCH, [8, 16])
    for op in build_table.ops():
        for one in build_table.variants(op, _tiles.AMD_ARCH):
            assert build_amd.TARGET.warp_size * one.num_warps <= 1024, op
