"""What only AMD's GPUs run: nibbles expanded without PTX, as the interpreter does, and their tiles."""

import pytest
import torch
import triton
import triton.language as tl

from qspec_kernels.backends.triton import _expand, _launch, _tiles
from qspec_kernels.formats.mxfp4 import LEVELS
from tests.gpu.interpreted.test_linear import check_floats, check_integers

pytestmark = pytest.mark.usefixtures("poisoned")


@triton.jit
def _expand_all(out_ptr, MXFP4: tl.constexpr, INTEGER: tl.constexpr):
    byte = tl.arange(0, 256)
    low, high = _expand.expand(byte.to(tl.uint8), MXFP4, INTEGER)
    tl.store(out_ptr + byte, low)
    tl.store(out_ptr + 256 + byte, high)


def check_every_byte(mxfp4: bool, integer: bool) -> None:
    out = torch.full((2, 256), 99, dtype=torch.int8 if integer else torch.float32)
    _expand_all[(1,)](out, mxfp4, integer)
    numbers = [2 * level for level in LEVELS] if mxfp4 else [code - 8.0 for code in range(16)]
    assert out.tolist() == [[numbers[b & 15] for b in range(256)], [numbers[b >> 4] for b in range(256)]]


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("mxfp4", [True, False])
def test_every_byte(mxfp4, integer):
    check_every_byte(mxfp4, integer)


# 10 for 12
def test_a_wrong_magnitude_is_caught(monkeypatch):
    monkeypatch.setattr(_expand, "MAGNITUDES", tl.constexpr(0xA8643210 - (1 << 32)))
    with pytest.raises(AssertionError):
        check_every_byte(True, True)


@pytest.mark.parametrize("kind", ["int4", "mxfp4"])
def test_linears(rng, kind, monkeypatch):
    monkeypatch.setattr(_launch, "INTERPRETED_ARCH", _tiles.AMD_ARCH)
    check_floats(rng, (5, 521, 48), kind, 32)
    check_integers(rng, (5, 521, 48), kind, 32, "a8")
