"""Why no linear uses `tl.dot_scaled`: beside bfloat16 activations it makes bfloat16 of MXFP4 weights."""

import re

import pytest

triton = pytest.importorskip("triton", reason="needs triton")
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from qspec_kernels.backends.triton._interpreter import INTERPRETED  # noqa: E402

pytestmark = pytest.mark.skipif(bool(INTERPRETED), reason="kernels are interpreted in this process")
TYPES = {"w": "*u8", "scales": "*u8", "x": "*u8", "x_scales": "*u8", "out": "*fp32"}


@triton.jit
def by_bf16(w, scales, x, out, N: tl.constexpr, M: tl.constexpr, K: tl.constexpr):
    """MXFP4 weights [N, K] times bfloat16 activations [K, M]."""
    n, m, k = tl.arange(0, N)[:, None], tl.arange(0, M)[None, :], tl.arange(0, K)
    codes = tl.load(w + n * (K // 2) + tl.arange(0, K // 2)[None, :])
    powers = tl.load(scales + n * (K // 32) + tl.arange(0, K // 32)[None, :])
    product = tl.dot_scaled(codes, powers, "e2m1", tl.load(x + k[:, None] * M + m), None, "bf16")
    tl.store(out + n * M + m, product)


@triton.jit
def by_mxfp4(w, scales, x, x_scales, out, N: tl.constexpr, M: tl.constexpr, K: tl.constexpr):
    """The same with MXFP4 activations: what `dot_scaled` is made for."""
    n, m, k = tl.arange(0, N)[:, None], tl.arange(0, M)[None, :], tl.arange(0, K // 2)
    codes, blocks = tl.load(w + n * (K // 2) + k[None, :]), tl.arange(0, K // 32)[None, :]
    powers, x_powers = tl.load(scales + n * (K // 32) + blocks), tl.load(x_scales + m.T * (K // 32) + blocks)
    product = tl.dot_scaled(codes, powers, "e2m1", tl.load(x + k[:, None] * M + m), x_powers, "e2m1")
    tl.store(out + n * M + m, product)


def products(kernel, arch, folder, **types):
    """The matrix instructions of a kernel, in PTX."""
    sizes = {"N": 128, "M": 32, "K": 128}
    signature = {name: (TYPES | types).get(name, "constexpr") for name in kernel.arg_names}
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(folder)
        built = triton.compile(ASTSource(kernel, signature, sizes), target=GPUTarget("cuda", arch, 32))
    found = set(re.findall(r"\b(?:tcgen05\.)?mma\.[\w.:]+", built.asm["ptx"]))
    assert found
    return found


@pytest.mark.parametrize("arch", [100, 120])
def test_beside_bfloat16_no_scaled_instruction_is_used(tmp_path, arch):
    found = products(by_bf16, arch, tmp_path, x="*bf16")
    kind = "kind::f16" if arch == 100 else "bf16.bf16"
    assert all(kind in instruction for instruction in found)
    assert not any("scale" in instruction for instruction in found)


def test_with_scales_on_both_sides_one_is_used(tmp_path):
    """The test above would see it."""
    assert all("block_scale" in instruction for instruction in products(by_mxfp4, 120, tmp_path))
