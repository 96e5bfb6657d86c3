"""Every op as a function of some rows, compiled: one graph for any number of them, and eager's bits.

A process of its own, which `test_compile` starts: users have no annotation checks, and the compiler stumbles
over those of the tests. Given paths, it prints each and the ops compiled there.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import qspec_kernels as qk
from qspec_kernels import dispatch
from qspec_kernels.backends.cpp import library
from tests.kernels.cases import quantized, same_bits

K, N, D = 48, 7, 8
# a compiler takes 0 and 1 for constants, and sizes for one that are equal at first: no other size is 11
ROWS = (11, 2, 5)

# a function, and its arguments for a number of rows
Case = tuple[Callable[..., Sequence[Tensor]], Callable[[int], Sequence[Tensor]]]


def cases() -> dict[str, Case]:
    """Name of each op -> a case of public functions that end in it."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    weight, bias, gain = normal(N, K), normal(N), normal(K)
    int4, mxfp4 = (quantized(kind, weight, 32).packed for kind in ("int4", "mxfp4"))
    caches = normal(2, 2, 2, 16, D)
    rotary = qk.RotaryEmbedding(torch.rand(D // 2, generator=rng), 1.5)
    norm = qk.HeadNorm(gain[:D], gain[D : 2 * D])

    def on_features(op: Callable[[Tensor], Any]) -> Case:
        def run(x: Tensor) -> Sequence[Tensor]:
            out = op(x)
            return (out,) if isinstance(out, Tensor) else (out.codes, out.scales)

        return run, lambda m: (normal(m, K),)

    def on_cache(op: Callable[..., Tensor | None], heads: int) -> Case:
        def run(*given: Tensor) -> Sequence[Tensor]:
            k_cache, v_cache = caches[0].clone(), caches[1].clone()
            out = op(k_cache, v_cache, *given)
            return (k_cache, v_cache) if out is None else (k_cache, v_cache, out)

        return run, lambda m: (normal(m, heads, D), torch.arange(m) % 2, torch.arange(m) + 4)

    def on_draws(op: Callable[..., Tensor]) -> Case:
        def given(m: int) -> Sequence[Tensor]:
            uniforms = torch.rand(m, generator=rng, dtype=torch.float64)
            return normal(4, 40).abs(), normal(4, 40).abs(), uniforms, torch.arange(m) % 4

        return lambda *one: (op(*one),), given

    def linears(*kinds: tuple[Any, str]) -> Case:
        def run(x: Tensor, residual: Tensor) -> Sequence[Tensor]:
            return [
                qk.linear(x, one, bias, act=act, residual=residual, phase=phase)
                for one, act in kinds
                for phase in ("decode", "prefill")
            ]

        return run, lambda m: (normal(m, K), normal(m, N))

    def rescored(logits: Tensor, x: Tensor) -> Sequence[Tensor]:
        logits = logits.clone()
        qk.rescore(logits, x, weight.bfloat16(), bias, count=3)
        return (logits,)

    return {
        "argmax": on_features(qk.argmax),
        "attention": on_cache(lambda k, v, q, *at: qk.attention(q, k, v, *at, scale=0.5, window=6), 4),
        "cache_write": on_cache(lambda k, v, x, *at: qk.cache_write(k, v, x, x + 1, *at), 2),
        "draw": on_draws(lambda p, q, u, rows: qk.draw(p, u, rows=rows, without=rows)),
        "draw_residual": on_draws(
            lambda p, q, u, rows: qk.draw_residual(p, q, u, p_rows=rows, q_rows=rows - 1)
        ),
        "embedding": (
            lambda ids: (qk.embedding(weight, ids, rounded=True),),
            lambda m: (torch.arange(m) % N,),
        ),
        "hadamard": on_features(lambda x: qk.hadamard(x, block=24, diagonal=gain)),
        "hadamard_quantize_act": on_features(qk.hadamard_quantize_act),
        "linear": linears((weight, "a16"), (weight.bfloat16(), "a16")),
        "linear_integer": linears((int4, "a8"), (int4, "a4"), (mxfp4, "a8")),
        "linear_packed": linears((int4, "a16"), (mxfp4, "a16")),
        "quantize_act": on_features(lambda x: qk.quantize_act(x, bits=4, group_size=32)),
        "rescore": (rescored, lambda m: (normal(m, N), normal(m, K))),
        "rmsnorm": on_features(lambda x: qk.rmsnorm(x, gain)),
        "rmsnorm_quantize_act": on_features(lambda x: qk.rmsnorm_quantize_act(x, gain)),
        "rope": (
            lambda x, positions: (qk.rope(x, positions, rotary.inv_freq),),
            lambda m: (normal(m, 3, D), torch.arange(m)),
        ),
        "rope_cache_write": on_cache(
            lambda k, v, x, rows, positions: qk.rope_cache_write(
                x.flatten(1), k, v, rows, positions, rotary, norm
            ),
            7,
        ),
        "silu_mul": on_features(qk.silu_mul),
        "silu_mul_hadamard_quantize_act": on_features(qk.silu_mul_hadamard_quantize_act),
        "silu_mul_quantize_act": on_features(qk.silu_mul_quantize_act),
        "softmax": on_features(lambda x: qk.softmax(x, 0.7)),
        "top2": (qk.top2, lambda m: (normal(m, K),)),
    }


def block() -> Case:
    """Ops one after the other, as a model has them, and nothing for which inductor needs a C++ compiler."""
    int4 = quantized("int4", torch.randn(16, 64), 32).packed
    weight, gain = torch.randn(16, 64), torch.rand(64)
    layer = qk.nn.QuantLinear.from_linear(torch.nn.Linear(64, 64), "w4a8", 32)

    def run(x: Tensor, k_cache: Tensor, v_cache: Tensor, *slots: Tensor) -> Sequence[Tensor]:
        h = qk.rmsnorm(layer(x), gain)
        qk.cache_write(k_cache, v_cache, h[:, None], h[:, None], *slots)
        h = qk.attention(h[:, None], k_cache, v_cache, *slots, scale=0.1)[:, 0]
        shared = qk.hadamard_quantize_act(h)
        wide = qk.linear(h, int4, phase="prefill")
        return qk.linear(shared, int4), qk.silu_mul(wide), qk.linear(h, weight)

    def given(m: int) -> Sequence[Tensor]:
        caches = torch.randn(2, 1, 16, 64), torch.randn(2, 1, 16, 64)
        return torch.randn(m, 64), *caches, torch.zeros(m, dtype=torch.int64), torch.arange(m)

    return run, given


def compiled(run: Callable[..., Any], backend: str) -> tuple[Callable[..., Any], CompileCounterWithBackend]:
    """The function, which may be compiled once, and its graph as soon as it has been."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(run, fullgraph=True, dynamic=True, backend=counter), counter


def equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether all are, bit for bit."""
    return all(same_bits(*pair) for pair in zip(left, right, strict=True))


def check_ops() -> list[str]:
    """Compile all cases into one graph, compare what it gives for all ROWS, and name the ops in it."""
    runs = cases()

    def every(given: dict[str, Sequence[Tensor]]) -> dict[str, Sequence[Tensor]]:
        return {name: run(*given[name]) for name, (run, _) in runs.items()}

    fast, counter = compiled(every, "aot_eager")
    for rows in ROWS:
        given = {name: arguments(rows) for name, (_, arguments) in runs.items()}
        out = fast(given)
        for name, expected in every(given).items():
            assert equal(out[name], expected), f"{name} of {rows} rows"
    called = {str(node.target) for node in counter.graphs[-1].graph.nodes}
    return [name for name in runs if f"qspec.{name}.default" in called]


def check_block() -> None:
    """The block by inductor."""
    run, given = block()
    fast, _ = compiled(run, "inductor")
    for rows in ROWS:
        arguments = given(rows)
        others = [one.clone() for one in arguments]
        # what is written into the cache as well
        assert equal((*fast(*arguments), *arguments), (*run(*others), *others)), f"{rows} rows"


def serve(path: str) -> None:
    """Have the ops served by "torch", by a native library, or by "triton", interpreted."""
    torch._dynamo.reset()
    if path == "triton":
        assert os.environ["TRITON_INTERPRET"] == "1"
        dispatch._backends = lambda *_: ("triton",)
        dispatch._capability = lambda device: (8, 0)
        return
    os.environ[library.ENVIRONMENT] = path
    dispatch.reset()
    assert dispatch.isa() == path


if __name__ == "__main__":
    torch._dynamo.config.error_on_recompile = True
    # what a float of an op always ends as; to find that out takes as long as all the rest
    torch._dynamo.config.specialize_float = True
    for path in sys.argv[1:]:
        serve(path)
        print(path, *check_ops())
        if path == "torch":
            check_block()
