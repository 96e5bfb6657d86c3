"""`warmup` leaves nothing to compile, whatever the number of rows that come."""

import importlib
import random
from itertools import product
from types import SimpleNamespace

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels import dispatch
from qspec_kernels.backends.cuda import _launch
from qspec_kernels.formats import convert
from qspec_kernels.warmup import ROWS
from tests.gpu.emulation.cases import LAUNCHERS
from tests.kernels.cases import quantized

# around every border of the choices of tiles
ANY = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1024, 4096)
SHAPES = ((64, 256), (4096, 4096), (28672, 8192), (1024, 4112))


@pytest.fixture
def launched(monkeypatch):
    """CPU tensors are served by CUDA's launchers, which launch nothing: the kernels that they would."""
    kernels = []
    monkeypatch.setattr(_launch, "launch", lambda kernel, grid, arguments: kernels.append(kernel))
    monkeypatch.setattr(_launch, "arch", lambda device: 90)
    monkeypatch.setitem(dispatch._BACKENDS, "cpu", ("cuda", "torch"))
    monkeypatch.setattr(dispatch, "_gpu_refusal", lambda *_: "")
    dispatch.find.cache_clear()
    yield kernels
    monkeypatch.undo()
    dispatch.reset()


@pytest.fixture
def weight(rng):
    packed = quantized("int4", torch.randn(64, 256, generator=rng), 32, on_device=False).packed
    return convert(packed, "int4_mma16")


def test_every_kernel_of_a_weight_is_launched(launched, weight):
    qk.warmup([weight, weight], ["a8", "a16"])
    assert {kernel.name for kernel in launched} == {"linear_w4a8", "linear_w4a16"}
    # weights of one kind are the same to kernels
    assert len(launched) == 2 * 2 * len(ROWS)
    ready = set(launched)
    launched.clear()
    for m, act, phase in product(ANY, ("a8", "a16"), ("decode", "prefill")):
        qk.linear(torch.zeros(m, 256).bfloat16(), weight, act=act, phase=phase)
    assert set(launched) == ready
    qk.linear(torch.zeros(1, 256), weight)
    assert not set(launched) <= ready, "float32 is another kind"


def test_bias_and_residual_come_along(weight, monkeypatch):
    calls = []
    monkeypatch.setattr(
        importlib.import_module("qspec_kernels.warmup"),
        "linear",
        lambda x, weight, bias, **rest: calls.append((x, bias, rest)),
    )
    qk.warmup([weight], ["a16"], [3])
    assert not calls, "a CPU's kernels are there already"
    monkeypatch.setattr(dispatch, "compiles", lambda device: True)
    qk.warmup([weight], ["a16"], [3])
    assert [rest["phase"] for _, _, rest in calls] == ["decode", "prefill"]
    calls.clear()
    qk.warmup([weight], ["a16"], [3], phases=["decode"])
    qk.warmup([weight], ["a8"], [3], dtype=torch.float32, bias=True, residual=True, phases=["prefill"])
    (x, bias, rest), (y, y_bias, y_rest) = calls
    assert (x.shape, x.dtype, bias, rest) == (
        (3, 256),
        torch.bfloat16,
        None,
        {"act": "a16", "residual": None, "phase": "decode"},
    )
    assert (y.dtype, y_bias.shape, y_rest["act"], y_rest["phase"]) == (torch.float32, (64,), "a8", "prefill")
    assert (y_rest["residual"].shape, y_rest["residual"].dtype) == ((3, 64), torch.float32)


@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name.startswith("linear")])
@pytest.mark.parametrize("arch", [80, 86, 90])
def test_rows_have_every_choice_of_cuda(name, arch):
    for n, k in SHAPES:
        chosen = {m: LAUNCHERS[name].kernels(m, n, k, 32, arch)[0] for m in {*ANY, *ROWS}}
        assert set(chosen.values()) == {chosen[m] for m in ROWS}


@pytest.mark.parametrize(
    ("file", "function"), [("_launch", "plan_packed"), ("_prefill_launch", "plan_prefill")]
)
@pytest.mark.parametrize("arch", [80, 86, 90, 100, 120])
def test_rows_have_every_choice_of_triton(file, function, arch):
    plan_of = getattr(pytest.importorskip(f"qspec_kernels.backends.triton.{file}"), function)

    def compiled(m: int, n: int, k: int, x_bytes: int, act_groups: int) -> str:
        plan = plan_of((m, n, k), 32, arch, mxfp4=False, x_bytes=x_bytes, act_groups=act_groups)
        return str(SimpleNamespace(constants=plan.constants, options=plan.options()))

    # a tile is least work for whole ones of its tokens, if at all, and its tokens are a multiple of 32
    tried = {*ANY, *ROWS, *range(32, ROWS[-1] + 1, 32)}
    widths = random.Random(0).sample(range(64, 32769, 64), 8)
    for n, k in (*SHAPES, *((width, 256) for width in widths)):
        for x_bytes, act_groups in ((2, 0), (4, 0), (1, 1)):
            chosen = {m: compiled(m, n, k, x_bytes, act_groups) for m in tried}
            assert set(chosen.values()) == {chosen[m] for m in ROWS}, (n, k)
