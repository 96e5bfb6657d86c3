"""The ops as citizens of PyTorch: `torch.library.opcheck`, on the torch path and the best library here."""

from collections.abc import Iterator

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels import dispatch
from qspec_kernels.backends.cpp import library
from tests.conftest import use_backend
from tests.kernels.cases import quantized, same_bits

OPS = torch.ops.qspec


@pytest.fixture(params=["torch", "native"], autouse=True)
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What serves the ops: "torch", or the name of the best library that is loaded here."""
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    dispatch.reset()
    works, reason = library.available()
    if request.param == "native" and not works:
        pytest.skip(reason)
    use_backend(library.isa() if request.param == "native" else "torch", monkeypatch)
    yield dispatch.isa()
    monkeypatch.undo()
    dispatch.reset()


def samples(name: str) -> list[tuple]:
    """Arguments of an op's schema: float32 and bfloat16, leading dimensions, strides."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 48, generator=rng)
    turned = torch.randn(48, 5, generator=rng).t()
    weight, bias = torch.randn(7, 48, generator=rng), torch.randn(7, generator=rng)
    int4, mxfp4 = (quantized(kind, weight, 32).packed for kind in ("int4", "mxfp4"))
    index = torch.tensor([0, 1])
    uniforms = torch.rand(7, generator=rng, dtype=torch.float64)
    cache = torch.randn(2, 1, 8, 4, generator=rng)
    k = torch.randn(2, 1, 4, generator=rng)
    heads = k.repeat(1, 3, 1).flatten(1)
    a8, a4 = qk.quantize_act(x), qk.quantize_act(turned, bits=4, group_size=32)

    def packed(weight, residual=None):
        return weight.data, weight.scales, bias, residual, weight.format, *weight.shape, weight.group_size

    return {
        "linear": [
            (x, weight, bias, x[..., :7], "decode"),
            (turned.bfloat16(), weight.bfloat16(), None, None, "prefill"),
            (x.double(), weight, bias, None, "decode"),
        ],
        "linear_packed": [
            (x, *packed(int4, x[..., :7]), "decode"),
            (turned.bfloat16(), *packed(mxfp4), "prefill"),
        ],
        "linear_integer": [
            (a8.codes, a8.scales, *packed(mxfp4, x[..., :7]), 8, "decode"),
            (a4.codes, a4.scales, *packed(int4), 4, "prefill"),
        ],
        "quantize_act": [(x, 8, 48, 1.0), (turned.bfloat16(), 4, 32, 0.9), (x.double(), 4, 48, 1.0)],
        "hadamard": [(x, 24, False, weight[0]), (turned.bfloat16(), 48, True, None)],
        "hadamard_quantize_act": [(x, 24, 8, 48, 1.0), (turned.bfloat16(), 48, 4, 32, 0.9)],
        "rmsnorm": [(x, weight[0], 1e-5), (turned.bfloat16(), weight[0], 1e-5)],
        "rmsnorm_quantize_act": [
            (x, weight[0], 1e-5, 8, 48, 1.0),
            (turned.bfloat16(), weight[0], 1e-5, 4, 32, 0.9),
        ],
        "silu_mul": [(x,), (turned.bfloat16(),)],
        "silu_mul_quantize_act": [(x, 8, 24, 1.0), (turned.bfloat16(), 4, 7, 0.9)],
        "silu_mul_hadamard_quantize_act": [
            (x, weight[0, :24], 12, 8, 24, 1.0),
            (turned.bfloat16(), None, 24, 4, 7, 0.9),
        ],
        "argmax": [(x,), (turned.double(),)],
        "top2": [(x,), (turned.double(),)],
        "softmax": [(x, 0.7), (turned.double(), 1.0)],
        "draw": [
            (weight.abs(), uniforms, None, None),
            (turned.double().abs(), uniforms, index.repeat(4)[:7], index.repeat(4)[:7] - 1),
        ],
        "draw_residual": [
            (weight.abs(), weight.abs() / 2, uniforms, None, None),
            (turned.double().abs(), turned.abs(), uniforms, index.repeat(4)[:7], index.repeat(4)[:7] - 1),
        ],
        "embedding": [
            (weight, index, True, torch.float32),
            (weight.bfloat16(), index, False, torch.float64),
        ],
        "rope": [
            (x, index, torch.rand(24, generator=rng), 1.0),
            (x.bfloat16(), index.int(), torch.rand(24), 1.0),
        ],
        "rescore": [(torch.randn(6, 7), x.flatten(0, 1), weight.bfloat16(), bias, 3)],
        "cache_write": [(cache.clone(), cache.clone(), k, k + 1, index, index)],
        "rope_cache_write": [
            (heads, cache.clone(), cache.clone(), index, index, bias[:2], 1.0, *weight[:2, :4], 1e-5),
            (heads.bfloat16(), cache.clone(), cache.clone(), index, index, bias[:2], 1.5, None, None, 0.0),
        ],
        "attention": [
            (k.repeat(1, 2, 1), cache, cache, index, index + 3, 0.5, -1),
            (k.bfloat16(), cache.bfloat16(), cache.bfloat16(), index.int(), index + 3, 0.5, 2),
        ],
    }[name]


NAMES = sorted(
    name.removeprefix("qspec::") for name in torch._C._dispatch_get_all_op_names() if "qspec::" in name
)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    for arguments in samples(name):
        torch.library.opcheck(getattr(OPS, name).default, arguments)


def test_every_op_has_samples():
    assert len(NAMES) == 22
    assert all(samples(name) for name in NAMES)


def test_fake_tensors_have_the_shapes_of_real_ones():
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, weight = torch.randn(2, 3, 48), torch.randn(7, 48)
    real = qk.linear(x.bfloat16(), weight), qk.quantize_act(x, bits=4, group_size=32).scales
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = qk.linear(x.bfloat16(), weight), qk.quantize_act(x, bits=4, group_size=32).scales
    assert [(t.shape, t.dtype) for t in fake] == [(t.shape, t.dtype) for t in real]


def test_an_op_is_the_same_through_the_dispatcher():
    x = torch.randn(3, 48)
    assert same_bits(OPS.silu_mul(x), qk.silu_mul(x))
