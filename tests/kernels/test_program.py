"""Programs: a replay does what the ops do, on what the inputs hold by then."""

import gc
import threading

import pytest
import torch
from torch import Tensor

import qspec_kernels as qk
from qspec_kernels import QSpecError, UsageError
from tests.kernels.cases import quantized, same_bits

WIDTH, HEADS, D, CAPACITY = 64, 2, 16, 40


class Layer:
    """One transformer layer, as a model would compute it."""

    def __init__(self, rng: torch.Generator, kind: str, act: str):
        def weight(n: int, k: int) -> Tensor | qk.PackedWeight:
            dense = torch.randn(n, k, generator=rng) / 8
            return dense.bfloat16() if kind == "bf16" else quantized(kind, dense, 32).packed

        self.act = act
        self.table = torch.randn(50, WIDTH, generator=rng)
        self.gain = torch.rand(WIDTH, generator=rng)
        self.rotary = qk.RotaryEmbedding(torch.rand(D // 2, generator=rng))
        self.qkv, self.o = weight((HEADS + 2) * D, WIDTH), weight(WIDTH, HEADS * D)
        self.gate_up, self.down = weight(96, WIDTH), weight(WIDTH, 48)

    def new_cache(self) -> Tensor:
        return torch.zeros(2, 3, 1, CAPACITY, D, dtype=torch.bfloat16)

    def __call__(self, ids: Tensor, rows: Tensor, positions: Tensor, cache: Tensor) -> Tensor:
        x = qk.embedding(self.table, ids, rounded=True)
        qkv = qk.linear(qk.rmsnorm(x, self.gain), self.qkv, act=self.act)
        q = qk.rope_cache_write(qkv, cache[0], cache[1], rows, positions, self.rotary)
        h = qk.attention(q, cache[0], cache[1], rows, positions, scale=0.25)
        x = qk.linear(h.view(len(x), -1), self.o, act=self.act, residual=x)
        h = qk.silu_mul(qk.linear(qk.rmsnorm(x, self.gain), self.gate_up, act=self.act))
        return qk.linear(qk.hadamard(h, block=16), self.down, act=self.act, residual=x)


def tokens(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, rows and positions of two tokens of row 0 and three of row 2, further on with every step."""
    ids = (torch.arange(5) * 7 + step) % 50
    rows = torch.tensor([0, 0, 2, 2, 2], dtype=torch.int32)
    positions = torch.tensor([0, 1, 4, 5, 6], dtype=torch.int32) + step
    return ids, rows, positions


def recorded(workspace: qk.Workspace, layer: Layer, cache: Tensor) -> tuple[list[Tensor], qk.Program, Tensor]:
    """Input memory, program and result of the layer at step 0."""
    inputs = [workspace.empty(tensor.shape, tensor.dtype) for tensor in tokens(0)]
    for buffer, tensor in zip(inputs, tokens(0), strict=True):
        buffer.copy_(tensor)
    with workspace.record() as program:
        out = workspace.result(layer(*inputs, cache))
    return inputs, program, out


@pytest.mark.parametrize(
    ("kind", "act"), [("bf16", "a16"), ("int4", "a16"), ("int4", "a8"), ("int4", "a4"), ("mxfp4", "a8")]
)
def test_a_replay_equals_the_ops(native, rng, kind, act):
    layer = Layer(rng, kind, act)
    cache, expected_cache = layer.new_cache(), layer.new_cache()
    inputs, program, out = recorded(qk.Workspace(), layer, cache)
    assert same_bits(out, layer(*tokens(0), expected_cache)), "the recording itself"
    for step in (1, 2, 30):
        for buffer, tensor in zip(inputs, tokens(step), strict=True):
            buffer.copy_(tensor)
        program.replay()
        assert same_bits(out, layer(*tokens(step), expected_cache)), step
        assert same_bits(cache, expected_cache), step


def test_what_is_not_recorded_is_refused(native, rng):
    workspace = qk.Workspace()
    x = workspace.empty((2, 8))
    x[:] = 1
    gain = torch.ones(8)
    for wrong in (
        lambda: x + 1,
        lambda: qk.rmsnorm(x, gain).exp(),
        lambda: qk.silu_mul(x.t()),
        lambda: x.mul_(2),
        lambda: torch.ones(2, 8) - x,
    ):
        with pytest.raises(QSpecError, match="a replay would leave it out"), workspace.record():
            wrong()
    with workspace.record() as program:
        qk.rmsnorm(x[1:].view(2, 4), torch.cat([gain[:2], gain[2:4]]))
    assert len(program) == 1


def test_kernels_run_at_the_end_of_the_block(native, rng):
    layer, workspace = Layer(rng, "bf16", "a16"), qk.Workspace()
    cache = layer.new_cache()
    before = cache.clone()
    with workspace.record():
        layer(*tokens(0), cache)
        assert same_bits(cache, before), "a kernel ran while calls were noted"
    assert not same_bits(cache, before)

    def interrupted():
        layer(*tokens(1), cache)
        raise KeyboardInterrupt

    before = cache.clone()
    with pytest.raises(KeyboardInterrupt), workspace.record():
        interrupted()
    assert same_bits(cache, before), "half a pass was run"


def test_an_op_left_out_would_be_noticed(native, rng, monkeypatch):
    # without the guard, torch's own arithmetic happens once and never again
    monkeypatch.setattr(
        "qspec_kernels.program._Guard.__torch_dispatch__", lambda _, f, t, a=(), k=None: f(*a, **k or {})
    )
    workspace = qk.Workspace()
    x = workspace.empty((1, 8))
    x[:] = 1
    with workspace.record() as program:
        out = workspace.result(qk.rmsnorm(x + torch.arange(8.0), torch.ones(8)))
    x[:] = torch.randn(8, generator=rng)
    program.replay()
    assert not same_bits(out, qk.rmsnorm(x + torch.arange(8.0), torch.ones(8)))


def test_memory_serves_again(native, rng):
    layer, workspace = Layer(rng, "bf16", "a16"), qk.Workspace()
    cache = layer.new_cache()
    with workspace.record() as program:
        one = layer(*tokens(0), cache)
    assert len(program) == 11
    one_pass = workspace.num_bytes
    with workspace.record():
        two = layer(*tokens(1), cache)
        assert two.data_ptr() != one.data_ptr(), "a tensor in use was overwritten"
    grown = workspace.num_bytes
    assert grown <= one_pass + one.nbytes + 64
    del one, two
    gc.collect()
    for step in range(5):
        with workspace.record():
            layer(*tokens(step), cache)
    assert workspace.num_bytes == grown
    outputs = 5 * 4 * (5 * WIDTH + 2 * HEADS * D + (HEADS + 2) * D + 96 + 2 * 48)
    assert one_pass < 0.75 * outputs, "nothing was used twice within one pass"


def test_results_outlive_the_program_and_the_workspace(native):
    workspace = qk.Workspace()
    x = workspace.empty((1, 8))
    x[:] = 1
    with workspace.record() as program:
        out = workspace.result(qk.rmsnorm(x, torch.full((8,), 3.0), 0.0))
    program.replay()
    del workspace, program, x
    gc.collect()
    torch.randn(1 << 16)
    assert out.tolist() == [[3.0] * 8]


def test_what_a_replay_reads_is_checked(native, rng):
    layer, workspace = Layer(rng, "bf16", "a16"), qk.Workspace()
    cache = layer.new_cache()
    inputs, program, _ = recorded(workspace, layer, cache)
    for index, value in ((0, 50), (0, -1), (1, 3), (1, -1), (2, CAPACITY), (2, -1)):
        for buffer, tensor in zip(inputs, tokens(0), strict=True):
            buffer.copy_(tensor)
        before = cache.clone()
        inputs[index][1] = value
        with pytest.raises(UsageError, match="outside its table or cache"):
            program.replay()
        assert same_bits(cache, before)


def test_other_threads_are_not_recorded(native):
    x, gain = torch.ones(2, 8), torch.ones(8)
    with qk.Workspace().record() as program:
        other = threading.Thread(target=lambda: qk.rmsnorm(x, gain) + 1)
        other.start()
        other.join()
    assert len(program) == 0


def test_the_torch_path_has_no_programs(torch_backend):
    with pytest.raises(qk.KernelUnavailable):
        qk.Workspace()
